"""Checks of this repository, by session. `.ci/run` runs the default ones, as `nox` alone does.

    nox -l                     list the sessions
    nox -s lint types          without tests
    nox -s fast                the fast tier: under two minutes on two cores
    nox -s tests -- -k gate    arguments after -- go to pytest

Sessions that need the whole package share one environment, `.nox/project`, since it takes gigabytes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox


ROOT = Path(__file__).resolve().parent
CONSTRAINTS = {name: ROOT / ".ci" / f"{name}.txt" for name in ("constraints", "lowest", "newest")}
EXTRAS = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
FAST = ("-m", "fast")
BROAD = ("-m", "fast or broad")
# Offline; and byte code is kept whatever the shell says: else each process compiles all tests again, 10 s of CPU.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
BOUNDED = ("-o", "faulthandler_timeout=480")  # seconds: an engine that hangs ends the run by the test's name

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"  # uv does not find the CPU builds of torch by pip's settings
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "docs", "wheel", "audit", "triton", "browser", "vllm", "tests"]
nox.options.sessions += ["lowest", "newest"]


def pinned(versions: str = "constraints") -> dict[str, str]:
    """The environment variables that hold pip to one set of versions."""
    return {"PIP_CONSTRAINT": str(CONSTRAINTS[versions]), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def install(session: nox.Session, *packages: str, versions: str = "constraints") -> None:
    """Install into a session's own environment, held to the constraints."""
    session.install("--quiet", *packages, env=pinned(versions))


class Project:
    """The environment with the installed package and all that its tests compare with."""

    ready = False
    tested = False  # whether the whole full tier has passed here

    def __init__(self, session: nox.Session) -> None:
        self.session = session
        self.folder = Path(session.cache_dir).parent / "project"
        self.bin = self.folder / ("Scripts" if os.name == "nt" else "bin")
        if not Project.ready:
            self._install()
            Project.ready = True

    def run(self, program: str, *args: str, **env: str) -> None:
        """Run a program of this environment."""
        self.session.run(str(self.bin / program), *args, external=True, env=env or None)

    def versions(self) -> set[tuple[str, str]]:
        """Name and version of each package in this environment."""
        command = (str(self.bin / "python"), "-m", "pip", "list", "--format=json")
        found = json.loads(str(self.session.run(*command, external=True, silent=True, stderr=subprocess.DEVNULL)))
        return comparable({each["name"]: each["version"] for each in found})

    def _install(self) -> None:
        if not self.folder.exists():
            self.session.run(sys.executable, "-m", "venv", str(self.folder), external=True)
        pip = ("-m", "pip", "install", "--quiet")
        self.run("python", *pip, ".[test,oracles,types]", **pinned())
        self.run("python", *pip, "--no-deps", "dictionary-learning==0.1.0", **pinned())
        self.run("python", *pip, "deepspeed>=0.19.8", **pinned())

    def test(self, *args: str, **env: str) -> None:
        """Run pytest on the installed package, away from the checkout."""
        with away(self.session):
            self.run("pytest", *settings(), *args, **ENVIRONMENT, **env)


def away(session: nox.Session) -> "nox.sessions._WorkingDirContext":
    """Change to an empty folder, from which `import sae_unlearn` finds the installed package alone."""
    return session.chdir(tempfile.mkdtemp(prefix="nox-"))


def settings() -> tuple[str, ...]:
    """Return the options that pytest needs in another folder."""
    return "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")


def chosen(session: nox.Session, folder: str = "tests") -> list[str]:
    """Return the arguments after --, with paths as seen from the root; all tests without one."""
    given = [str(ROOT / arg) if (ROOT / arg.partition("::")[0]).exists() else arg for arg in session.posargs]
    return given if any(arg.startswith(str(ROOT)) for arg in given) else [*given, str(ROOT / folder)]


def other_versions(session: nox.Session, versions: str) -> None:
    """Run the broad tier in an environment of the session's own."""
    install(session, "--upgrade", ".[test]", versions=versions)
    with away(session):
        session.run("pytest", *settings(), *BROAD, *chosen(session), env=ENVIRONMENT)


def resolved(session: nox.Session, versions: str) -> set[tuple[str, str]]:
    """Name and version of each package that `other_versions` would install."""
    report = Path(session.create_tmp()) / "resolved.json"
    install(session, "--dry-run", "--ignore-installed", "--report", str(report), ".[test]", versions=versions)
    found = json.loads(report.read_text())["install"]
    return comparable({each["metadata"]["name"]: each["metadata"]["version"] for each in found})


def comparable(versions: dict[str, str]) -> set[tuple[str, str]]:
    """Return packages and versions without what installs them, and with names in one form."""
    named = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in versions.items()}
    return {(name, version) for name, version in named if name not in {"pip", "setuptools", "wheel"}}


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and who may import whom."""
    install(session, *EXTRAS["lint"])
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": str(ROOT)})


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Types of the package, strictly."""
    Project(session).run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, in which a broken link is an error, and ask for the pages it links to."""
    install(session, *EXTRAS["docs"])
    session.run("python", "-m", "benchmarks.site_pages", "--check")
    session.run("mkdocs", "build", "--strict", "--site-dir", tempfile.mkdtemp(prefix="nox-site-"))
    session.run("python", ".ci/links")
    session.run("python", ".ci/words")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel as a release does, into a folder that may be given, and check what is in it."""
    install(session, *EXTRAS["release"])
    folder = session.posargs[0] if session.posargs else tempfile.mkdtemp(prefix="nox-wheel-")
    session.run("python", "-m", "build", "--outdir", folder)
    session.run("twine", "check", "--strict", *map(str, Path(folder).iterdir()))
    session.run("python", ".ci/wheel", *map(str, Path(folder).glob("*.whl")))


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what the package depends on; see `.ci/audit` for what fails."""
    project = Project(session)
    install(session, "pip-audit>=2.9")
    session.run("python", ".ci/audit", str(project.bin / "python"), str(Path(session.bin) / "pip-audit"))


@nox.session
def lowest(session: nox.Session) -> None:
    """The broad tier, on the lowest versions that the package accepts."""
    other_versions(session, "lowest")


@nox.session
def newest(session: nox.Session) -> None:
    """The broad tier, on the newest versions that the registry serves; not if `tests` has just run on the same ones."""
    if Project.tested and resolved(session, "newest") <= Project(session).versions():
        session.log("The pinned versions are the newest; the session `tests` has run the full tier on them.")
        return
    other_versions(session, "newest")


@nox.session(venv_backend="none")
def triton(session: nox.Session) -> None:
    """The Triton kernels under Triton's interpreter, in a process of its own: no other test meets Triton."""
    project = Project(session)
    folder = str(Path(session.cache_dir) / "for_triton")
    project.run(
        "python", "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", folder, "triton", **pinned()
    )
    project.test("-n0", str(ROOT / "tests/guardrail/kernels/test_triton_step.py"), PYTHONPATH=folder)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """The full tier, on the pinned versions; no comparison with another package may be skipped."""
    Project(session).test(*chosen(session), SAE_UNLEARN_REQUIRE_ORACLES="1")
    Project.tested = not session.posargs


@nox.session(venv_backend="none")
def fast(session: nox.Session) -> None:
    """The fast tier, on the pinned versions."""
    Project(session).test(*FAST, *chosen(session))


@nox.session(venv_backend="none")
def nightly(session: nox.Session) -> None:
    """Everything, on the pinned versions."""
    Project(session).test("--nightly", *chosen(session), SAE_UNLEARN_REQUIRE_ORACLES="1")


@nox.session
def vllm(session: nox.Session) -> None:
    """The guardrail inside vLLM, on its CPU build, and in transformers' server: an environment of 3.4 GB of its own."""
    torch = next(line for line in CONSTRAINTS["constraints"].read_text().splitlines() if line.startswith("torch=="))
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    session.install("--quiet", torch, env=quiet)
    session.install("--quiet", "-r", str(ROOT / ".ci" / "vllm.txt"), env=quiet)
    wheel = str(ROOT / ".ci" / "vllm_wheel.txt")
    session.install("--quiet", "--no-deps", "--require-hashes", "-r", wheel, env=quiet)
    session.install("--quiet", "--no-deps", ".", env=quiet)
    with away(session):
        given = chosen(session, "tests/engines/vllm")
        if not session.posargs:  # vLLM has all that transformers' server needs
            given.append(str(ROOT / "tests" / "engines" / "test_transformers_serve.py"))
        session.run("pytest", *settings(), *BOUNDED, "-n0", *given, env=ENVIRONMENT)


@nox.session(venv_backend="none")
def oracles(session: nox.Session) -> None:
    """The comparisons with other loaders of SAEs alone; the session `tests` runs them, too."""
    Project(session).test("-k", "oracle or saelens", str(ROOT / "tests" / "sae"), SAE_UNLEARN_REQUIRE_ORACLES="1")


@nox.session
def browser(session: nox.Session) -> None:
    """The playground in Chromium and in a terminal, and completion; nox names it if a Chromium is missing."""
    install(session, ".[test,playground,completion]", "playwright>=1.49")
    found = chromium(session)
    given = chosen(session, "tests/playground")
    if not session.posargs:
        given.append(str(ROOT / "tests" / "cli" / "test_start.py"))
    env = ENVIRONMENT | ({"SAE_UNLEARN_BROWSER": found} if found else {})
    with away(session):
        session.run("pytest", *settings(), *BOUNDED, "-n0", *given, env=env)
    if found is None:
        session.skip("no Chromium, so tests/playground/test_browser.py was not run; set SAE_UNLEARN_BROWSER")


def chromium(session: nox.Session) -> str | None:
    """Return a Chromium's path; in CI as root, one is installed by apt if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    given = os.environ.get("SAE_UNLEARN_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if given is None and os.environ.get("SAE_UNLEARN_CI") and shutil.which("apt-get") and os.geteuid() == 0:
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            session.run("apt-get", "-qq", *command, external=True, silent=True, success_codes=range(256))
        given = shutil.which("chromium")
    return given
