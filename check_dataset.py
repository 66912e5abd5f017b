"""Run `python -m tools.check_dataset`, for scripts that use its earlier name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("tools.check_dataset", run_name="__main__", alter_sys=True)
