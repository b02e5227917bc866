"""What the backend requires of a machine and where to look for it. Data only: the plug-in module reads it."""

from sage_infer import Need

__all__ = ["ENGINE", "LABEL", "NEEDS"]

ENGINE = {"vllm": ">=0.18,<0.19"}
"""Hygon's own build of vLLM (``0.18.1+das…``), by distribution. Its platform is built in: there is no plug-in."""

LABEL = "das"
"""In the local version of Hygon's builds: they patch the wheels of the same version."""

_COMMUNITY = "from the developers' community, developer.sourcefind.cn"

NEEDS = (
    Need(
        what="driver",
        files=("/sys/module/hycu", "/sys/module/hydcu", "/opt/hyhal"),
        install=f"install the driver (hyhal) {_COMMUNITY}; in a container mount /opt/hyhal",
    ),
    Need(
        what="DTK toolkit",
        files=("/opt/dtk*",),
        install=f"install DTK {_COMMUNITY}, and source its env.sh",
    ),
    Need(
        what="torch for DTK",
        distributions={"torch": ""},
        labels={"torch": LABEL},
        install=f"pip install the wheel of torch for the installed DTK (+das) {_COMMUNITY}",
    ),
    Need(
        what="vLLM for DTK",
        distributions=ENGINE,
        labels=dict.fromkeys(ENGINE, LABEL),
        install=f"pip install the wheel of vLLM for the installed DTK (0.18.1+das) {_COMMUNITY}",
    ),
)
