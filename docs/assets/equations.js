// Typesets the page's equations with KaTeX, which is fetched (from this site) only where there are any.
const equations = document.querySelectorAll(".arithmatex");
if (equations.length) {
  const home = new URL("katex/", document.currentScript.src);
  const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL("katex.min.css", home) });
  const script = Object.assign(document.createElement("script"), { src: new URL("katex.min.js", home) });
  script.onload = () =>
    equations.forEach((element) =>
      katex.render(element.textContent.trim().slice(2, -2), element, {
        displayMode: element.tagName === "DIV",
        throwOnError: false,
      }),
    );
  document.head.append(style, script);
}
