"""The graph on one machine: its home, runs shown in a terminal, and the web pages."""
