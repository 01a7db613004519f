# What the one-file executable runs. It is the agent, and also the interpreter that the agent starts its helpers with: the
# process runtime runs its launcher as `<python> -I -S <file or -c code> <arguments>`.
import sys


def interpreter(words):
    import runpy

    if words[0] == "-c":
        sys.argv = words[:1] + words[2:]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        return
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:3] == ["-I", "-S"] and len(sys.argv) > 3:
        interpreter(sys.argv[3:])
        sys.exit(0)
    from edgelite.cli import main

    sys.exit(main())
