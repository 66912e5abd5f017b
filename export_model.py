"""Run `python -m tools.export_model`, for scripts that use its earlier name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("tools.export_model", run_name="__main__", alter_sys=True)
