"""The header says what the figures depend on."""

import fastsoftmax as fsm
from fastsoftmax._timing import describe_machine


def pytest_report_header() -> str:
    config, machine = fsm.get_config(), describe_machine()
    return f"fastsoftmax {config['version']}: {config['isa']}, {config['threads']} threads, {machine['cpu']}"
