"""What the processor says of itself. No torch."""

from pathlib import Path

#: Flags of processors that multiply in bf16: of x86-64, and of ARM.
INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
CPUINFO = Path("/proc/cpuinfo")


def bf16_instructions() -> tuple[str, ...]:
    """The processor's instructions that multiply in bf16, by name; none where nothing says so."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system than Linux
        return ()
    named = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return tuple(sorted(INSTRUCTIONS & set(next(named, []))))
