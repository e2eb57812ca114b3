"""The process in which llama.cpp quantizes; it imports no more than it needs."""

from __future__ import annotations

import sys

_WARNING = 3


def main() -> int:
    """The process: reads source, target, llama.cpp's number of the type and threads from the command line."""
    from cyllama.llama import llama_cpp

    said: list[str] = []

    def note(level: int, text: str) -> None:
        if level >= _WARNING:
            said.append(text)

    source, target, code, threads = sys.argv[1:]
    llama_cpp.set_log_callback(note)
    settings = llama_cpp.LlamaModelQuantizeParams()
    settings.ftype, settings.nthread = int(code), int(threads)
    try:
        llama_cpp.model_quantize(source, target, settings)
    except RuntimeError as error:
        sys.stderr.write("".join(said).strip() or str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
