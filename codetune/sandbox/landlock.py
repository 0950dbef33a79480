"""Landlock: which files a process may open, and nothing else of the file system. Needs no privilege; once in force it
cannot be undone, and every thread and child inherits it.

Documentation: https://docs.kernel.org/userspace-api/landlock.html, linux/landlock.h. It does not govern `stat`, reading
links and changing directory: that a file exists, and how large it is, can still be asked where nothing else hides it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from codetune.sandbox import kernel

# The same numbers on every architecture, since Linux 5.13.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION, PATH_BENEATH = 1, 1

READ_FILE, READ_DIR = 1 << 2, 1 << 3
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
# Remove and make directories, files and symbolic links; no devices, sockets or pipes.
CHANGE_DIRECTORY = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12
OF_FILES = READ_FILE | WRITE_FILE | TRUNCATE  # rights that can be granted on what is no directory
# ABI -> the last right on files that it knows: execute to make_sym, refer, truncate, ioctl on devices.
LAST_FILE_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14, 5: 15}
BIND_AND_CONNECT_TCP = 0b11  # ABI 4
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11  # ABI 6


def version() -> int:
    """The ABI of the running kernel; OSError where it has none, or has it switched off."""
    return kernel.system_call(CREATE_RULESET, None, 0, ASK_VERSION)


def ruleset(readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """A descriptor of the rules: everything that this kernel can forbid is forbidden, save below these paths."""
    abi = version()
    handled = (1 << (LAST_FILE_RIGHT.get(abi, 15) + 1)) - 1
    attributes = struct.pack("Q", handled)
    if abi >= 4:
        attributes += struct.pack("Q", BIND_AND_CONNECT_TCP)
    if abi >= 6:
        attributes += struct.pack("Q", ABSTRACT_SOCKETS_AND_SIGNALS)
    rules = kernel.system_call(CREATE_RULESET, attributes, len(attributes), 0)
    for path in readable:
        _allow(rules, path, READ_FILE | READ_DIR)
    for path in writable:
        _allow(rules, path, (READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | CHANGE_DIRECTORY) & handled)
    return rules


def restrict_self(rules: int) -> None:
    """Needs no-new-privileges."""
    kernel.system_call(RESTRICT_SELF, rules, 0)


def _allow(rules: int, path: Path, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        granted = rights if path.is_dir() else rights & OF_FILES
        kernel.system_call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", granted, place), 0)
    finally:
        os.close(place)
