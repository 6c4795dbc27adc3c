"""Kafka's own command line tools, which are another make of client than ours."""

from __future__ import annotations

import subprocess

from servers.downloads import java, kafka_jars, kafka_tools


def run_tool(name: str, *arguments: str, text: str | None = None) -> str:
    """Run one with a text to read, and return what it prints."""
    path = f"{kafka_jars()}/*:{kafka_tools()}/*"
    options = ["-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", path]
    command = [str(java()), *options, name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, input=text, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
