"""What is installed, shipped and looked up: the lock, the licences, the bill of materials, the audit."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from packaging.licenses import canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "scripts")
    import audit
    import licences
    import lock

# The one platform that the lock is for.
TARGET = {
    "extra": "",
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.7",
    "python_version": "3.11",
    "sys_platform": "linux",
}
LOCKED = lock.locked()


def unmet(requirement: Requirement) -> bool:
    """Whether a requirement counts on the lock's platform, and no locked version meets it."""
    if requirement.marker is not None and not requirement.marker.evaluate(TARGET):
        return False
    version = LOCKED.get(canonicalize_name(requirement.name))
    return version is None or not requirement.specifier.contains(version, prereleases=True)


# The lock


@pytest.mark.parametrize("extra", ["", lock.EXTRA, *lock.locked_extras()])
def test_the_lock_meets_what_the_project_asks_for(extra: str) -> None:
    asked = [requirement for requirement in map(Requirement, lock.project()[extra]) if requirement.name != "sidestep"]
    assert [str(requirement) for requirement in asked if unmet(requirement)] == []


def test_the_lock_holds_what_its_packages_need() -> None:
    """As far as they are installed here in the locked version; without their extras."""
    wanting = []
    for name, version in LOCKED.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if distribution.version == version:
            needs = map(Requirement, distribution.requires or [])
            wanting += [f"{name} needs {requirement}" for requirement in needs if unmet(requirement)]
    assert wanting == []


def test_pip_takes_no_file_without_a_hash_and_builds_nothing() -> None:
    text = lock.LOCK.read_text(encoding="utf-8")
    assert "\n--only-binary :all:\n" in text
    packages = text.partition("--only-binary :all:")[2].replace("\\\n", " ").split("\n")
    entries = [line.split() for line in packages if line.strip()]
    assert len(entries) == len(LOCKED)
    for pin, *hashes in entries:
        assert pin.count("==") == 1
        assert hashes
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", text) for text in hashes), pin


# Licences


@pytest.fixture(scope="module")
def page() -> str:
    return licences.OUT.read_text(encoding="utf-8")


def table(page: str) -> dict[str, tuple[str, str]]:
    """(version, licence) of each package in THIRD_PARTY.md."""
    rows = page.partition("| package | version | licence | extra |\n|---|---|---|---|\n")[2].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name: (version, licence) for name, version, licence, _ in cells}


def test_every_locked_package_has_its_licence_on_the_page(page: str) -> None:
    packages = table(page)
    assert {name: version for name, (version, _) in packages.items()} == LOCKED, "run scripts/licences.py"
    for _, licence in packages.values():
        assert canonicalize_license_expression(licence)


def test_what_asks_more_than_to_be_named_is_told_of(page: str) -> None:
    """Copyleft and proprietary terms, of packages by their own metadata; what wheels hold besides, only people know."""
    terms = page.partition("## Terms to know")[2].partition("## Packages")[0]
    for name, (_, licence) in table(page).items():
        if any(word in licence for word in ("GPL", "MPL", "LicenseRef")):
            family = f"{name.partition('-')[0]}-*"
            assert f"`{name}`" in terms or f"`{family}`" in terms, name


def test_a_package_whose_licence_is_unclear_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mystery-1.0.dist-info"
    folder.mkdir()
    about = folder / "METADATA"
    about.write_text("Metadata-Version: 2.1\nName: mystery\nVersion: 1.0\nLicense: Proprietary, ask us\n")
    with pytest.raises(ValueError, match="mystery: says nothing clear of its licence"):
        licences.licence(metadata.Distribution.at(folder))
    about.write_text(about.read_text().replace("Proprietary, ask us", "Apache License 2.0"))
    assert licences.licence(metadata.Distribution.at(folder)) == "Apache-2.0"


def test_the_page_shows_the_table_of_files(page: str) -> None:
    assert licences.files_table() in page, "run scripts/licences.py"


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository here")
    return [path for path in listed.stdout.split("\0") if path]


def test_every_file_that_is_not_plainly_ours_is_in_the_table() -> None:
    """What is no text, what is drawn or packed by a machine, and what lies beside a licence of its own."""
    paths = tracked()
    foreign = {str(Path(path).parent) for path in paths if Path(path).name.startswith("LICENSE")} - {"."}
    beside = ("LICENSE*", "OFL.txt", "README*")
    for path in paths:
        machine_made = path.endswith((".svg", ".min.js", ".ipynb"))
        inside = any(path.startswith(f"{folder}/") for folder in foreign)
        if inside or machine_made or b"\0" in (ROOT / path).read_bytes()[:8192]:
            assert licences.is_listed(path) or any(fnmatch(Path(path).name, name) for name in beside), path


def test_whoever_made_what_the_test_scenes_show_is_named() -> None:
    """CC BY asks for it; each scene tells of its own models."""
    sources = list((ROOT / "tests/data").rglob("source.json"))
    assert sources
    named = licences.files_table()
    for source in sources:
        about = json.loads(source.read_text(encoding="utf-8"))
        for model in about.get("models", [about]):
            for creator in re.split(r" and | / ", model["creator"]):
                assert creator in named, source


def test_the_table_of_files_names_none_that_is_not_there() -> None:
    paths = tracked()
    for entry in licences.FILES:
        for pattern in entry.patterns:
            assert any(fnmatch(path, pattern) for path in paths), pattern
        assert "://" in entry.text or (ROOT / entry.text).is_file(), entry.text


# The bill of materials


def test_the_bill_of_materials_is_of_this_lock_and_these_weights(page: str) -> None:
    bill = json.loads((ROOT / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "sidestep")
    packages = {
        part["name"]: (part["version"], part["licenses"][0].get("expression") or part["licenses"][0]["license"]["id"])
        for part in bill["components"]
        if part.get("purl", "").startswith("pkg:pypi/")
    }
    assert packages == table(page), "run scripts/sbom.py"
    weights = {part["hashes"][0]["content"] for part in bill["components"] if part["type"] == "machine-learning-model"}
    sums = (ROOT / "src/sidestep/models/small").glob("*/SHA256SUMS")
    assert weights == {path.read_text().split()[0] for path in sums}, "run scripts/sbom.py"
    known = {part["bom-ref"] for part in bill["components"]}
    needed = {ref for dependency in bill["dependencies"] for ref in dependency.get("dependsOn", [])}
    assert needed <= known


# The audit


class Vulnerabilities(BaseHTTPRequestHandler):
    """OSV's interface, of a service that knows of vulnerabilities in the packages of `KNOWN`."""

    known: tuple[str, ...] = ()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = asked["package"]
        found = {"id": "TEST-1", "summary": "told by a test", "affected": [{"package": package}]}
        body = json.dumps({"vulns": [found]} if package["name"] in self.known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of such a service; the lock to be looked up is one of two packages."""
    names = ("idna", "six")
    (tmp_path / "requirements.lock").write_text(
        "--only-binary :all:\n" + "".join(f"{name}=={LOCKED[name]} --hash=sha256:{'0' * 64}\n" for name in names)
    )
    monkeypatch.setattr(audit, "LOCK", tmp_path / "requirements.lock")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vulnerabilities)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("known", "status"), [(("requests", "idna"), 1), (("requests",), 0)])
def test_a_known_vulnerability_fails_the_audit(
    service: str,
    known: tuple[str, ...],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pip_audit")
    monkeypatch.setattr(Vulnerabilities, "known", known)
    assert audit.main(service) == status
    told = capfd.readouterr()
    assert ("TEST-1" in told.out) == bool(status)
    assert "skipped" not in told.err


def test_an_audit_that_cannot_be_made_is_skipped_and_says_why(
    service: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)
    assert audit.main(service) == 0
    assert "skipped, requirements.lock was not looked up: pip-audit is not installed" in capsys.readouterr().err
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: sys)
    assert audit.main(service) == 0
    assert "knows of no vulnerabilities" in capsys.readouterr().err
    assert audit.main("http://127.0.0.1:9/") == 0
    assert "does not answer" in capsys.readouterr().err


def test_the_daily_job_says_that_it_was_skipped_where_nothing_can_be_installed(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, code in (("pip", 1), ("python", 0)):  # an index that does not answer; an audit that is skipped
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/ran\nexit {code}\n")
        program.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "audit", tmp_path / ".ci")
    assert subprocess.run([tmp_path / ".ci" / "audit"], check=False).returncode == 0
    assert (tmp_path / "ran").read_text().split() == ["pip", "python"]
