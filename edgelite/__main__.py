"""`python -m edgelite`, and the entry of the slim interpreter that the resident agent runs in:

python -I -S .../edgelite/__main__.py --resident DATA_DIR MODE LOG_LEVEL LOG_DIR
"""

import sys

if not __package__:
    # Run by path in isolated mode: nothing is importable yet.
    sys.path.insert(0, __file__.replace("\\", "/").rpartition("/edgelite/")[0] or ".")

if __name__ == "__main__":
    if sys.argv[1:2] == ["--resident"]:
        from edgelite.resident import resident

        sys.exit(resident(*sys.argv[2:6]))
    from edgelite.cli import main

    sys.exit(main())
