"""The command line: parses, calls m3di, shows. No logic, and no heavy import before a command runs."""
