"""Writes sbom.cdx.json, a bill of materials in CycloneDX 1.6: the locked packages, and what the wheel holds of others.

    .venv/bin/pip install -e ".[dev,release]"
    .venv/bin/python scripts/sbom.py

Run it where requirements.lock was written. It bears no date and no number of its own, so that the same lock gives the
same bytes.
"""

import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from licences import licence, uses
from lock import EXTRA, ROOT, graph, locked
from packageurl import PackageURL

from sidestep.files import write_json
from sidestep.models import BUNDLED, model_folder
from sidestep.models.sums import SUMS, read_sums

OUT = ROOT / "sbom.cdx.json"

# What lies in the repository: (name, version, licence, where).
VENDORED = (
    ("three", "0.185.1", "MIT", "in the wheel: sidestep/app/static/three"),
    ("katex", "0.19.1", "MIT AND OFL-1.1", "in the documentation alone: docs/assets/katex"),
)


def package(name: str, version: str, extras: list[str]) -> Component:
    """A package of the lock; what the tests and tools alone need is in nobody's installation."""
    scope = ComponentScope.OPTIONAL if extras else ComponentScope.REQUIRED
    if extras == [EXTRA]:
        scope = ComponentScope.EXCLUDED
    return Component(
        name=name,
        version=version,
        scope=scope,
        bom_ref=f"pkg:pypi/{name}@{version}",
        purl=PackageURL("pypi", name=name, version=version),
        licenses=[LicenseExpression(licence(metadata.distribution(name)))],
    )


def vendored() -> list[Component]:
    return [
        Component(
            name=name,
            version=version,
            bom_ref=f"pkg:npm/{name}@{version}",
            purl=PackageURL("npm", name=name, version=version),
            licenses=[LicenseExpression(expression)],
            description=where,
        )
        for name, version, expression, where in VENDORED
    ]


def weights() -> list[Component]:
    """The networks of the bundled model, with the digests that are compared when they are loaded."""
    return [
        Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            group="sidestep/models/small",
            name=sums.parent.name,
            bom_ref=f"sidestep/models/small/{sums.parent.name}/{file}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
            licenses=[LicenseExpression("Apache-2.0")],
            description=file,
        )
        for sums in sorted(Path(model_folder(BUNDLED)).glob(f"*/{SUMS}"))
        for file, digest in read_sums(sums).items()
    ]


def bill() -> Bom:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    root = Component(
        name=about["name"],
        version=about["version"],
        bom_ref="sidestep",
        purl=PackageURL("pypi", name=about["name"], version=about["version"]),
        licenses=[LicenseExpression(about["license"])],
        description=about["description"],
    )
    bom = Bom()
    bom.metadata.component = root
    brought = uses()
    packages = {name: package(name, version, brought[name]) for name, version in locked().items()}
    parts = [*vendored(), *weights()]
    bom.components = [*packages.values(), *parts]
    needed = graph([EXTRA])
    bom.register_dependency(root, [packages[name] for name in needed["sidestep"] if name in packages] + parts)
    for name, component in packages.items():
        bom.register_dependency(component, [packages[other] for other in needed[name]])
    return bom


def main() -> None:
    data = json.loads(JsonV1Dot6(bill()).output_as_string())
    del data["serialNumber"], data["metadata"]["timestamp"]
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(data)):
        sys.exit(f"error: not CycloneDX: {fault}")
    write_json(OUT, data)
    print(f"{len(data['components'])} components in {OUT.name}")


if __name__ == "__main__":
    main()
