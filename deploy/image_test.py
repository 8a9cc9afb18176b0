"""Build the images and try them as an orchestrator would: `make image-test`, without a Docker daemon.

On a base made by debootstrap (or `--base IMAGE`) both images are built. Then one pod with the arguments,
settings and memory of deploy/kubernetes: the server and the gateway as their own user, with a read-only
root, no capabilities and one loopback between them. A prediction comes back over HTTP, the health checks
agree, only the declared ports can be reached, SIGTERM stops both. The last line is JSON.

Needs root, and buildah, debootstrap and runc (Debian's packages of these names).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml

from audiocnn.audio import synthetic
from deploy.oci import Container, ImageError, Store, inside_network

BASE = "localhost/audiocnn-base"
ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "deploy" / "constraints.txt"
TARGETS = {"gateway": "localhost/audiocnn-gateway", "cpu": "localhost/audiocnn-server"}
PACKAGES = "python3,python3-venv,ca-certificates"
MIRROR = "http://deb.debian.org/debian"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
DEPLOYMENT = ROOT / "deploy" / "kubernetes" / "base" / "deployment.yaml"
KEY = "a-key-for-the-test-of-the-images-alone"
GRACE_SECONDS = 40.0
SOUND = "rain"
# Nothing that compiles, trains or measures. (`cc` and `c++` are what Debian's compilers are called.)
FORBIDDEN_PROGRAMS = ("cc", "c++", "gcc", "g++", "clang", "make", "javac", "pip", "pip3")
FORBIDDEN_PACKAGES = {
    "server": ("torchaudio", "tensorboard", "matplotlib", "scipy", "onnx", "onnxscript", "pytest"),
    "gateway": ("torch", "onnxruntime", "ts", "torchaudio", "tensorboard", "matplotlib", "scipy", "pytest"),
}


@contextmanager
def _step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say what is done, and how long it took."""
    print(f"{name} ...", flush=True)
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)
    print(f"  {seconds[name]:.1f} s", flush=True)


def make_base(store: Store, mirror: str) -> None:
    """A minimal Debian 12 with Python 3.11, with this machine's Debian sources if it has any."""
    name = store.buildah("from", "scratch")
    root = Path(store.buildah("mount", name))
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), mirror]
    with (store.folder / "debootstrap.log").open("wb") as log:
        if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
            raise ImageError(f"debootstrap failed, see {log.name}")
    if SOURCES.is_file() and "bookworm" in SOURCES.read_text():
        shutil.copy(SOURCES, root / "etc/apt/sources.list.d/")
        (root / "etc/apt/sources.list").unlink()
    for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / leftover)
        (root / leftover / "partial").mkdir(parents=True)
    store.buildah("commit", "--quiet", "--rm", name, BASE)


def wanted() -> list[str]:
    """The direct requirements of both images and of the export in between."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = ("client", "formats", "torchserve", "gateway", "export")
    lines = [*project["dependencies"], *(line for name in names for line in extras[name])]
    return [line for line in lines if not line.startswith(project["name"])]


def make_wheels(folder: Path) -> None:
    """All that the images install, so that the builds need no index, whatever pip is told here."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder)]
    command += ["--constraint", str(FILE), *wanted()]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ImageError(f"pip could not fetch the packages:\n{done.stderr[-2000:]}")


def build(store: Store, target: str, base: str, wheels: Path) -> None:
    """One target of the Dockerfile; the other one's stages that it shares are taken over."""
    arguments = {"BASE_IMAGE": base, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
    flags = [flag for pair in arguments.items() for flag in ("--build-arg", "=".join(pair))]
    flags += ["--isolation", "chroot", "--format", "docker", "--layers", "--pull-never"]
    flags += ["--volume", f"{wheels}:/wheels:ro", "--target", target, "--tag", TARGETS[target]]
    log = store.folder / f"build-{target}.log"
    store.buildah("bud", "--quiet", *flags, "--logfile", str(log), str(ROOT))


def parts(root: Path) -> dict[str, float]:
    """Megabytes of an image: all of it, and its biggest parts by name."""

    def megabytes(path: Path) -> float:
        done = subprocess.run(
            ["du", "-sx", "--block-size=1", str(path)], stdout=subprocess.PIPE, text=True, check=True
        )
        return round(int(done.stdout.split()[0]) / 1e6, 1)

    packages = next((root / "opt/venv/lib").glob("python3*/site-packages"))
    sizes = {f"{path.name} (Python)": megabytes(path) for path in packages.iterdir() if path.is_dir()}
    sizes |= {"Java": megabytes(root / "opt/java")} if (root / "opt/java").is_dir() else {}
    sizes |= {"ours": megabytes(root / "app")}
    sizes["base (Debian, Python)"] = round(
        megabytes(root) - sum(megabytes(root / p) for p in ("opt", "app")), 1
    )
    biggest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:12])
    return {"all": megabytes(root)} | biggest


def check_contents(root: Path, role: str) -> None:
    """`ImageError` for a compiler, a package of training, or a file of ours that the user can change."""
    for folder in ("bin", "usr/bin", "usr/local/bin", "opt/venv/bin", "opt/java/bin"):
        found = [name for name in FORBIDDEN_PROGRAMS if (root / folder / name).exists()]
        if found:
            raise ImageError(f"/{folder} of the {role} has {found}")
    packages = next((root / "opt/venv/lib").glob("python3*/site-packages"))
    if found := [name for name in FORBIDDEN_PACKAGES[role] if (packages / name).exists()]:
        raise ImageError(f"the {role} has {found}")
    if foreign := [path for path in (root / "app").rglob("*") if path.stat().st_uid]:
        raise ImageError(f"not root's: {foreign}")


def check_confined(container: Container) -> None:
    """`ImageError` unless it is a user without rights whose root cannot be written to."""
    status = container.run("cat", "/proc/1/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if "0" in fields["Uid"].split() or int(fields["CapEff"], 16) or fields["NoNewPrivs"] != "1":
        raise ImageError(f"{container.name} has rights:\n{status}")
    refused = container.run("touch", "/app/x", "/opt/x", "/etc/x").stderr
    if refused.count("Read-only file system") != 3:
        raise ImageError(f"the root of {container.name} can be written to: {refused}")


def manifest() -> dict[str, dict[str, Any]]:
    """What Kubernetes would be told about both containers: what `Container.start` takes, and the ports."""
    pod = yaml.safe_load(DEPLOYMENT.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    found = {}
    for container in pod["initContainers"] + pod["containers"]:
        memory = container["resources"]["limits"]["memory"]
        found[container["name"]] = {
            "arguments": container.get("args", ()),
            "environment": {entry["name"]: entry.get("value", KEY) for entry in container.get("env", ())},
            "memory_mib": int(memory[:-2]) * {"Mi": 1, "Gi": 1024}[memory[-2:]],
            "ports": {port["containerPort"] for port in container["ports"]},
        }
    return found


def ask(server: Container) -> dict[str, Any]:
    """A prediction, directly and through the gateway; `ImageError` unless all that is offered answers."""
    sound = synthetic.wav(SOUND)
    with inside_network(server), requests.Session() as http:
        http.trust_env = False
        direct = http.post("http://127.0.0.1:8080/predictions/audiocnn", data=sound, timeout=60).json()
        http.headers["X-API-Key"] = KEY
        through = http.post("http://127.0.0.1:8000/predict", files={"file": sound}, timeout=60).json()
        addresses = ("8000/ready", "8000/", "8001/metrics", "8082/metrics")
        replies = {address: http.get(f"http://127.0.0.1:{address}", timeout=60) for address in addresses}
    if bad := {address: reply.status_code for address, reply in replies.items() if not reply.ok}:
        raise ImageError(f"refused: {bad}")
    top: dict[str, Any] = direct["predictions"][0]
    if through["predictions"][0] != top:
        raise ImageError(f"directly: {direct}\nthrough the gateway: {through}")
    return top


def try_pod(server: Container, gateway: Container, seconds: dict[str, float]) -> dict[str, Any]:
    """Start both, ask both, look at them, stop both; what was seen."""
    told = manifest()
    ports = {role: told[role].pop("ports") for role in told}
    with _step("the server becomes healthy", seconds):
        server.start(**told["server"])
        probe = server.wait_healthy(180)
    with _step("the gateway becomes healthy", seconds):
        gateway.start(**told["gateway"], network_of=server)
        gateway.wait_healthy(90)
    check_confined(server)
    check_confined(gateway)
    top = ask(server)
    if server.ports() != ports["server"] | ports["gateway"]:
        raise ImageError(f"reachable: {server.ports()}, declared: {ports}")
    memory = {"server": server.peak_memory_mib(), "gateway": gateway.peak_memory_mib()}
    stops = {"gateway": gateway.stop(GRACE_SECONDS), "server": server.stop(GRACE_SECONDS)}
    if any(code for code, _ in stops.values()):
        raise ImageError(f"exit codes and seconds: {stops}\n{server.output()}\n{gateway.output()}")
    return {
        "prediction": top,
        "health_check_seconds": round(probe, 2),
        "peak_memory_mib": {name: round(value) for name, value in memory.items()},
        "exit_codes": {name: code for name, (code, _) in stops.items()},
        "stop_seconds": {name: round(took, 1) for name, (_, took) in stops.items()},
    }


def run(store: Store, base: str | None, mirror: str) -> dict[str, Any]:
    """Everything; what was seen."""
    seconds: dict[str, float] = {}
    wheels = (store.folder / "wheels").resolve()
    if base is None and not store.has(BASE):
        with _step("Debian 12, minimal", seconds):
            make_base(store, mirror)
    with _step("wheels", seconds):
        make_wheels(wheels)
    for target in TARGETS:
        with _step(f"image {target}", seconds):
            build(store, target, base or BASE, wheels)
    with ExitStack() as stack:
        pod, sizes = {}, {}
        for role, image in (("server", TARGETS["cpu"]), ("gateway", TARGETS["gateway"])):
            root = stack.enter_context(store.mounted(image))
            check_contents(root, role)
            sizes[role] = parts(root)
            pod[role] = Container(role, root, store.config(image), store.folder.resolve() / "containers")
            stack.callback(pod[role].remove)
        seen = try_pod(pod["server"], pod["gateway"], seconds)
    return seen | {"megabytes": sizes, "seconds": seconds}


def missing_tools() -> list[str]:
    """What this command needs and the machine has not."""
    tools = [name for name in ("buildah", "debootstrap", "runc") if not shutil.which(name)]
    return [f"{name} (apt-get install {name})" for name in tools] + (["root"] if os.getuid() else [])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: built, tried, as it should be; 1: not, and why; 2: cannot be tried here."""
    parser = argparse.ArgumentParser(prog="python -m deploy.image_test", description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", help="a Debian 12 with Python 3.11 and venv; else debootstrap makes one")
    parser.add_argument("--mirror", default=MIRROR, help="for debootstrap (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("build/image"), help="(%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep images and wheels: the next time is faster")
    args = parser.parse_args(arguments)
    if missing := missing_tools():
        print(f"error: needs {', '.join(missing)}", file=sys.stderr)
        return 2
    store = Store(args.folder)
    try:
        seen = run(store, args.base, args.mirror)
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if not args.keep:
            store.remove()
    for role, sizes in seen["megabytes"].items():
        print(f"\n{role}, MB unpacked")
        print("\n".join(f"  {megabytes:8.1f}  {name}" for name, megabytes in sizes.items()))
    print(f"\n{json.dumps(seen)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
