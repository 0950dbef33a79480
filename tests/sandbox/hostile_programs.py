"""Programs that attempt to escape, to pass without being right, or to break the run; and honest ones beside them.

Braces name what a test fills in: `{outside}` a directory of the user, `{expected}` that of the expected outputs, `{port}`
a server of the user, `{judge}` the process id of the test.
"""

from __future__ import annotations

import os

from tests.benchmark.tasks import PROMPT

GOOD = PROMPT + "    return 2 * x"
SLEEP_SECONDS = f"631.{os.getpid()}"  # a length of sleep that no other process asks for

LIBC = "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
RAW_THREADS = (  # they share a stack, and wait; 0x10f00 is CLONE_VM, _FS, _FILES, _SIGHAND and _THREAD
    LIBC + "stack = ctypes.create_string_buffer(65536)\ntop = ctypes.c_void_p(ctypes.addressof(stack) + 65000 & ~63)\n"
    "def start_thread(flags): return libc.clone(libc.pause, top, flags, None) > 0\n"
)
ALWAYS = "class Always:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
BROKEN_PICKLE = r"b'\x80\x05cposix\nsystem\n(S\'touch /tmp/codetune-forged\'\ntR.'"
FRAME = (
    "import os, struct\ndef frame(kind, content):\n    return struct.pack('<cdQ', kind, 0.0, len(content)) + content\n"
)
CHANNEL = (
    "import os, stat\ndef is_socket(n):\n    try: return stat.S_ISSOCK(os.fstat(n).st_mode)\n"
    "    except OSError: return False\nchannel = next(filter(is_socket, range(3, 99)))\n"
)

# ruff: noqa: E501 - programs on one line each
# Pass only if they deceive the judge.
FORGERIES = {
    "equals_everything": f"{ALWAYS}def double(x): return Always()",
    "equals_everything_as_int": (
        "class Always(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def double(x): return Always(7)"
    ),
    "equals_everything_in_a_list": f"{ALWAYS}def double(x): return [Always()]",
    "equals_everything_as_a_wrapper": (
        f"{ALWAYS}import collections\nclass List(collections.UserList, Always): __hash__ = None\ndef double(x): return List([7])"
    ),
    "equals_everything_inside_a_wrapper": (
        f"{ALWAYS}import collections\ndef double(x):\n    found = collections.UserString('')\n    found.data = Always()\n    return found"
    ),
    "exchanges_the_wrappers": (
        f"{ALWAYS}import collections, sys, types\nfor name in ('UserList', 'UserString', 'UserDict', 'ChainMap'):\n"
        "    setattr(collections, name, Always)\ntypes.MappingProxyType = Always\nsys.modules['collections'] = Always()\n"
        "def double(x): return Always()"
    ),
    "says_that_it_is_a_number_of_sympy": (
        f"{ALWAYS}Always.__module__, Always.__name__ = 'sympy.core.numbers', 'Integer'\nAlways.is_extended_real = True\n"
        "Always.__float__ = lambda self: 7.0\ndef double(x): return Always()"
    ),
    "says_that_it_is_a_truth_of_sympy": (
        f"{ALWAYS}Always.__module__, Always.__name__ = 'sympy.logic.boolalg', 'BooleanTrue'\ndef double(x): return Always()"
    ),
    "registers_as_a_number": (
        f"{ALWAYS}import numbers\nnumbers.Real.register(Always)\nAlways.__float__ = lambda self: float('nan')\n"
        "def double(x): return Always()"
    ),
    "exchanges_the_tables": (
        f"{ALWAYS}import sys\nfor name, module in list(sys.modules.items()):\n    if name.endswith('sandbox.serialization'):\n"
        "        for table in ('WRAPPER_TYPES', 'EXTENDED_TYPES', 'EXACT_TYPES', 'BUILDERS', 'STAND_INS'):\n            setattr(module, table, dict())\n"
        "        module._stand_in = lambda value: ('foreign int', Always())\ndef double(x): return Always()"
    ),
    "pickles_as_the_answer": (
        "class Late:\n    def __reduce__(self): return (eval, ('[f for f in []] or 2',))\ndef double(x): return Late()"
    ),
    "pickles_as_code": (
        "import os\nclass Code:\n    def __reduce__(self): return (os.system, ('touch {outside}/forged',))\n"
        "def double(x): return Code()"
    ),
    "reads_the_callers_frame": (
        "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for values in (frame.f_locals, frame.f_globals):\n            for name in list(values):\n"
        "                if 'expect' in name: return values[name][0]\n        frame = frame.f_back"
    ),
    "searches_the_heap_for_answers": (
        "import gc\ndef double(x):\n    for found in gc.get_objects():\n"
        "        if isinstance(found, list) and found[:1] == [2 * 1] and x == 1: return found[0]\n    return None"
    ),
    "patches_the_comparison": (
        "import numpy\nnumpy.allclose = lambda *a, **k: True\nimport codetune.sandbox.serialization as w\n"
        "w.encode = lambda value: b''\ndef double(x): return 7"
    ),
    "patches_builtins": "import builtins\nbuiltins.abs = builtins.all = builtins.isinstance = lambda *a: True\n"
    "def double(x): return 7",
    "patches_the_judges_modules": (
        "import sys\nfor name, module in list(sys.modules.items()):\n"
        "    if name.startswith(('codetune', 'evalplus')):\n"
        "        for key in list(vars(module)): vars(module)[key] = lambda *a, **k: True\n"
        "def double(x): return 7"
    ),
    "exits_well": "import os\ndef double(x): os._exit(0)",
    "exits_well_at_once": "import os; os._exit(0)",
    "exits_politely": "def double(x): raise SystemExit(0)",
    "leaves_at_exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef double(x): return 7",
    "prints_a_verdict": 'print(\'{{"base": "pass", "plus": "pass"}}\')\ndef double(x): return 7',
    "writes_result_files": (
        "import io, os\nfor name in ('result.json', 'samples_eval_results.json'):\n    try:\n"
        "        io.FileIO(name, 'w').write(b'{{\"base\": \"pass\"}}')\n    except OSError: pass\ndef double(x): return 7"
    ),
    "sends_frames_of_nothing": f"{CHANNEL}os.write(channel, b'pass' * 100)\ndef double(x): return 7",
    "sends_a_code_pickle": f"{FRAME}{CHANNEL}os.write(channel, frame(b'v', {BROKEN_PICKLE}))\ndef double(x): return 7",
    "sends_hello_again": f"{FRAME}{CHANNEL}os.write(channel, frame(b'h', b'') * 9)\ndef double(x): return 7",
    "sends_a_frame_without_end": (
        f"{FRAME}{CHANNEL}os.write(channel, struct.pack('<cdQ', b'v', 0.0, 2**62))\ndef double(x): return 7"
    ),
    "closes_its_channel": f"{CHANNEL}os.close(channel)\ndef double(x): return 2 * x",
    "traces_its_caller": (
        "import sys\ndef tracer(frame, event, arg):\n    frame.f_locals.clear()\n    return tracer\n"
        "sys.settrace(tracer)\ndef double(x): return 7"
    ),
    "raises_its_own_timeout": "def double(x): raise TimeoutError",
    "claims_every_class": (
        "class Any:\n    __class__ = int\n    def __eq__(self, o): return True\n    def __index__(self): return 7\n"
        "def double(x): return Any()"
    ),
    "dictionary_with_a_will": (
        "class D(dict):\n    def __eq__(self, o): return True\n    def items(self): return [('a', 2)]\ndef double(x): return D()"
    ),
}

# Would find or do something that they must not; they return the right answer where they could.
INTRUSIONS = {
    "reads_a_key": "import io\ndef double(x):\n    io.FileIO('{outside}/id_rsa').read()\n    return 2 * x",
    "reads_a_key_by_a_link": (
        "import os\ndef double(x):\n    os.symlink('{outside}/id_rsa', 'link')\n    os.open('link', 0)\n    return 2 * x"
    ),
    "reads_passwords": "import os\ndef double(x):\n    os.open('/etc/passwd', 0)\n    return 2 * x",
    "lists_the_home": "import os\ndef double(x):\n    os.listdir('{outside}')\n    return 2 * x",
    "climbs_out": ("import os\ndef double(x):\n    os.open('../' * 40 + '{outside}/id_rsa', 0)\n    return 2 * x"),
    "reads_the_judges_memory": (
        "import os\ndef double(x):\n    os.open('/proc/{judge}/environ', 0)\n    os.open('/proc/{judge}/mem', 0)\n    return 2 * x"
    ),
    "reads_its_parents_memory": (
        "import os\ndef double(x):\n    os.open(f'/proc/{{os.getppid()}}/mem', 0)\n    return 2 * x"
    ),
    "opens_its_own_memory": "import os\ndef double(x):\n    os.open('/proc/self/mem', 2)\n    return 2 * x",
    "finds_other_processes": "import os\ndef double(x):\n    os.listdir('/proc')\n    return 2 * x",
    "sees_a_token": (
        "import os\ndef double(x): return 2 * x if any('CANARY' in v for v in os.environ.values()) else None"
    ),
    "writes_the_home": "import io\ndef double(x):\n    io.FileIO('{outside}/new', 'w').write(b'x')\n    return 2 * x",
    "overwrites_a_file": "import os\ndef double(x):\n    os.open('{outside}/id_rsa', 1)\n    return 2 * x",
    "truncates_a_file": LIBC + "def double(x):\n    if libc.truncate(b'{outside}/id_rsa', 0) == 0: return 2 * x",
    "changes_a_mode": LIBC + "def double(x):\n    if libc.chmod(b'{outside}/id_rsa', 511) == 0: return 2 * x",
    "removes_a_file": LIBC + "def double(x):\n    if libc.unlink(b'{outside}/id_rsa') == 0: return 2 * x",
    "hard_links_a_file": LIBC + "def double(x):\n    if libc.link(b'{outside}/id_rsa', b'mine') == 0: return 2 * x",
    "poisons_the_expected_outputs": (
        "import os\ndef double(x):\n    for name in os.listdir('{expected}'): os.open('{expected}/' + name, 1)\n    return 2 * x"
    ),
    "changes_its_interpreter": (
        "import os, json\ndef double(x):\n    os.open(json.__file__, os.O_WRONLY)\n    return 2 * x"
    ),
    "connects_by_tcp": (
        "import socket\ndef double(x):\n    socket.create_connection(('127.0.0.1', {port}), 2)\n    return 2 * x"
    ),
    "sends_by_udp": (
        "import socket\ndef double(x):\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    s.sendto(b'x', ('127.0.0.1', {port}))\n    return 2 * x"
    ),
    "asks_a_name_server": (
        "import socket\ndef double(x):\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    s.sendto(b'x', ('8.8.8.8', 53))\n    return 2 * x"
    ),
    "connects_to_an_abstract_socket": (
        "import socket\ndef double(x):\n    socket.socket(socket.AF_UNIX).connect('\\0codetune-{judge}')\n    return 2 * x"
    ),
    "sends_a_datagram_from_a_pair": (
        "import socket\ndef double(x):\n    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "    a.sendto(b'x', '\\0codetune-{judge}')\n    return 2 * x"
    ),
    "listens": (
        "import socket\ndef double(x):\n    s = socket.socket()\n    s.bind(('', 0))\n    s.listen()\n    return 2 * x"
    ),
    "forks": LIBC + "def double(x):\n    if libc.fork() >= 0: return 2 * x",
    "leaves_a_sleeper": (
        f"import os\ndef double(x):\n    os.posix_spawn('/bin/sleep', ['sleep', '{SLEEP_SECONDS}'], {{{{}}}})\n    return 2 * x"
    ),
    "leaves_a_daemon": (
        "import os\ndef double(x):\n    os.posix_spawn('/bin/sh', ['sh', '-c', "
        f"'setsid sleep {SLEEP_SECONDS} & exec sleep {SLEEP_SECONDS}'], {{{{}}}}, setsid=True)\n    return 2 * x"
    ),
    "becomes_another_program": "import os\ndef double(x): os.execv('/bin/sleep', ['sleep', '1'])",
    "kills_its_parent": LIBC + "def double(x):\n    if libc.kill(os.getppid(), 9) == 0: return 2 * x",
    "kills_everybody": LIBC + "def double(x):\n    if libc.kill(-1, 9) == 0: return 2 * x",
    "kills_the_judge": LIBC + "def double(x):\n    if libc.kill({judge}, 9) == 0: return 2 * x",
    "kills_by_descriptor_owner": (
        "import fcntl, os, signal, socket\ndef double(x):\n    a, b = socket.socketpair()\n"
        "    fcntl.fcntl(a, fcntl.F_SETOWN, {judge})\n    return 2 * x"
    ),
    "traces_its_parent": LIBC + "def double(x):\n    if libc.ptrace(0x4206, os.getppid(), 0, 0) == 0: return 2 * x",
    "becomes_root_of_a_namespace": LIBC + "def double(x):\n    if libc.unshare(0x10000000) == 0: return 2 * x",
    "mounts": LIBC + "def double(x):\n    if libc.mount(b'none', b'/', b'tmpfs', 0, None) == 0: return 2 * x",
    "asks_for_io_uring": LIBC + "def double(x):\n    if libc.syscall(425, 8, b'\\0' * 120) >= 0: return 2 * x",
    "takes_a_key_ring": LIBC + "def double(x):\n    if libc.syscall(250, 0, -3, 1) >= 0: return 2 * x",
    "shares_memory": LIBC + "def double(x):\n    if libc.shmget(0, 4096, 0o1600) >= 0: return 2 * x",
    "gives_a_thread_files_of_its_own": (
        f"{RAW_THREADS}def double(x):\n    if start_thread(0x10f00 & ~0x400): return 2 * x"
    ),
    "gives_itself_files_of_its_own": LIBC + "def double(x):\n    if libc.syscall(436, 200, 250, 2) == 0: return 2 * x",
    "goes_before_others": (
        LIBC + "mask = b'\\1' + bytes(127)\ndef double(x):\n    parent = os.getppid()\n"
        "    if 0 in (libc.nice(-5), libc.setpriority(0, parent, 19), libc.sched_setscheduler(0, 1, b'\\1\\0\\0\\0'),\n"
        "             libc.sched_setaffinity(parent, 128, mask), libc.syscall(251, 1, 0, 0)): return 2 * x"
    ),
    "raises_its_limits": (
        "import resource\ndef double(x):\n    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):\n"
        "        try: resource.prlimit(0, kind, (1 << 16, 1 << 16))\n        except (OSError, ValueError): continue\n"
        "        return 2 * x"
    ),
    "takes_memory_of_the_kernel": (
        LIBC + "def double(x):\n    pair, words = __import__('socket').socketpair(), ctypes.create_string_buffer(64)\n"
        "    read, write = os.pipe()\n"
        "    if max(libc.memfd_create(b'm', 0), libc.syscall(240, b'q', 0o102, 0o600, None), libc.msgget(0, 0o1600),\n"
        "           libc.semget(0, 9, 0o1600), libc.timer_create(1, None, words), libc.inotify_init(), libc.syscall(323, 0),\n"
        "           libc.fcntl(write, 1031, 1 << 20), libc.setsockopt(pair[0].fileno(), 1, 7, b'\\0\\0\\0\\1', 4)) >= 0: return 2 * x"
    ),
    "keeps_itself_alive_without_memory": (
        "import os\ndef double(x):\n    os.write(os.open('/proc/self/oom_score_adj', 1), b'0')\n    return 2 * x"
    ),
    "writes_shared_memory": "import io\ndef double(x):\n    io.FileIO('/dev/shm/codetune', 'w')\n    return 2 * x",
    "outlives_its_parent": LIBC + "def double(x):\n    if libc.prctl(1, 0, 0, 0, 0) == 0: return 2 * x",
    "lets_itself_be_dumped": LIBC + "def double(x):\n    if libc.prctl(4, 1, 0, 0, 0) == 0: return 2 * x",
}

# Cost time or memory, or end in an error.
NUISANCES = {
    "never_ends": "def double(x):\n    while True: pass",
    "never_loads": "while True: pass",
    "ignores_alarms": (
        "def double(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass"
    ),
    "ignores_signals": (
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ndef double(x):\n    while True: time.sleep(1)"
    ),
    "takes_the_alarm_away": "import signal, time\ndef double(x):\n    signal.setitimer(0, 0)\n    time.sleep(300)",
    "stops_itself": "import signal\ndef double(x): signal.raise_signal(signal.SIGSTOP)",
    "kills_itself": "import signal\ndef double(x): signal.raise_signal(signal.SIGKILL)",
    "recurses": "def double(x): return double(x)",
    "overflows_the_c_stack": "import sys\ndef double(x):\n    sys.setrecursionlimit(10**9)\n    return double([x])",
    "returns_what_is_too_deep": "def double(x):\n    v = []\n    for _ in range(10**6): v = [v]\n    return v",
    "returns_itself": "def double(x):\n    v = []\n    v.append(v)\n    return v",
    "bombs_the_memory": "def double(x): return [0] * 10**11",
    "fills_the_memory": "def double(x):\n    held = []\n    while True: held.append(bytearray(2**28))",
    "returns_too_much": "def double(x): return bytes(2**28 + 1)",
    "returns_much": "def double(x): return [[0] * 1000] * 10**5",
    "bombs_the_reader": (  # a memo of pickle's that asks for 32 GB
        f"{FRAME}{CHANNEL}os.write(channel, frame(b'v', b'\\x80\\x04Nr\\xff\\xff\\xff\\xff.'))\ndef double(x): return 7"
    ),
    "returns_characters_that_there_are_not": (
        "import numpy\ndef double(x): return numpy.frombuffer(b'\\xff\\xff\\xff\\x7f', dtype='<U1')"
    ),
    "bombs_the_comparison": "def double(x):\n    v = 1.0\n    for _ in range(60): v = [v, v]\n    return v",
    "bombs_the_hash": "def double(x):\n    v = ()\n    for _ in range(22): v = (v, v)\n    return {{v}}",
    "prints_without_end": "def double(x):\n    while True: print('x' * 10**6)",
    "writes_to_the_terminal": "import os\ndef double(x):\n    while True: os.write(1, b'x' * 99); os.write(2, b'y')",
    "reads_stdin": "def double(x): return int(input()) + x",
    "fills_the_disk": (
        "import io\ndef double(x):\n    f = io.FileIO('big', 'wb')\n    while True: f.write(bytes(2**20))"
    ),
    "makes_files_without_end": (
        "import os\ndef double(x):\n    for n in range(10**9): os.close(os.open(f'f{{n}}', os.O_CREAT | os.O_WRONLY))"
    ),
    "makes_what_cannot_be_removed": "import os\ndef double(x):\n    os.mkdir('locked', 0)\n    return None",
    "opens_without_end": "import os\ndef double(x):\n    while True: os.pipe()",
    "starts_threads_without_end": (
        "import threading, time\ndef double(x):\n    threading.stack_size(32768)\n"
        "    while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"
    ),
    "starts_threads_without_memory": (f"{RAW_THREADS}def double(x):\n    while True: start_thread(0x10f00)"),
    "hashes_in_threads_without_end": (
        "import hashlib, signal, threading\n"
        "def spin(*_):\n    while True: hashlib.sha256(bytes(2**20))\n"
        "def double(x):\n    for n in (14, 27): signal.signal(n, signal.SIG_IGN)\n"
        "    for _ in range(200): threading.Thread(target=spin, daemon=True).start()\n    spin()"
    ),
    "queues_signals_without_end": (
        "import signal, threading\ndef double(x):\n    signal.pthread_sigmask(signal.SIG_BLOCK, {{40}})\n"
        "    while True: signal.pthread_kill(threading.get_ident(), 40)"
    ),
    "bombs_by_forks": LIBC + "def double(x):\n    while True: libc.fork()",
    "raises_what_lies": (
        "class Lie(BaseException):\n    def __str__(self): raise Lie\n    __repr__ = __str__\ndef double(x): raise Lie"
    ),
    "has_a_strange_name": "def double(x): raise type('\\n pass ' * 99, (Exception,), {{}})",
    "is_no_python": "def double(x):\n    return (x",
    "is_all_brackets": "x = " + "(" * 5000 + ")" * 5000,
    "has_a_null": "def double(x): return '\0'",
    "has_no_function": "def single(x): return 2 * x",
    "is_a_number": "double = 2",
}

# Expressions of `x` and `np` that know the shape of the output, [x + 0.5, 1.5], and not its numbers.
SHAPES_WITHOUT_NUMBERS = {
    "nothing": "[]",
    "an_empty_array": "np.empty(0)",
    "an_empty_array_of_rank_two": "np.empty((0, 2))",
    "an_empty_array_of_rank_three": "np.empty((0, 1, 2))",
    "empty_lists": "[[]] * 2",
    "empty_lists_of_lists": "[[[]]] * 2",
    "empty_arrays": "[np.empty(0)] * 2",
    "empty_arrays_of_the_length": "[[np.empty((0, 2))]] * 2",
    "empty_tuples": "[()] * 2",
    "a_scalar": "1.5",
    "an_array_without_dimensions": "np.array(1.5)",
    "a_list_of_one": "[1.5]",
    "rows_of_one": "[[x + 0.5], [1.5]]",
    "all_in_one_row": "[[x + 0.5, 1.5]]",
    "the_list_twice": "[[x + 0.5, 1.5]] * 2",
    "not_numbers": "[float('nan')] * 2",
    "infinities": "[float('inf')] * 2",
    "narrow_infinities": "[np.float16('inf')] * 2",
    "masked": "np.ma.array([0.5, 1.5], mask=[True, False])",
    "masked_elements": "[np.ma.masked] * 2",
    "truths": "[True] * 2",
    "a_range": "range(2)",
    "a_generator": "(y for y in [x + 0.5, 1.5])",
    "texts": "[str(x + 0.5), '1.5']",
    "a_text_that_is_a_float": "type('Text', (str,), {'__float__': lambda self: x + 0.5})('1.5')",
    "mixed": "[x + 0.5, None]",
    "objects": "np.array([None, None])",
}

# Without a sandbox a program can remove its judge's directory, in which no further sandbox can then be started.
BREAKS_ITS_JUDGE = f"""{LIBC}import posix
def double(x):
    if x == 2:
        scratch, zygote = posix.getcwd(), os.getppid()
        judges = os.path.dirname(scratch)
        libc.prctl(1, 0, 0, 0, 0)  # it outlives its zygote, and returns
        libc.chdir(b"/")
        libc.rmdir(scratch.encode())
        libc.unlink(judges.encode() + b"/errors.txt")
        libc.rmdir(judges.encode())
        libc.kill(zygote, 9)
    return 2 * x"""

HONEST = {
    "threads": "import threading\ndef double(x):\n    out = []\n    t = threading.Thread(target=lambda: out.append(2 * x))\n"
    "    t.start(); t.join()\n    return out[0]",
    "many_threads": (
        "import concurrent.futures, threading\ndef double(x):\n    barrier = threading.Barrier(60)\n"
        "    with concurrent.futures.ThreadPoolExecutor(60) as pool:\n"
        "        list(pool.map(lambda _: barrier.wait(), range(60)))\n    return 2 * x"
    ),
    "asyncio": "import asyncio\nasync def later(x):\n    await asyncio.sleep(0)\n    return 2 * x\n"
    "def double(x): return asyncio.run(later(x))",
    "numpy": "import numpy\ndef double(x): return numpy.dot(numpy.full(3, x), [1, 1, 0])",
    "late_imports": "def double(x):\n    import decimal, statistics, sqlite3, zoneinfo\n    zoneinfo.ZoneInfo('Europe/Berlin')\n"
    "    return statistics.mean([2 * x])",
    "randomness": "import os, random, secrets, tempfile\ndef double(x):\n    os.urandom(3)\n    return 2 * x + secrets.randbelow(1)",
    "sympy": "import sympy\ndef double(x): return sympy.Integer(2) * x",
    "wrappers": "from collections import UserString\ndef double(x): return UserString(x) * 2 if isinstance(x, str) else 2 * x",
    "prints": "def double(x):\n    print(x)\n    return 2 * x",
    "named_tuples": "from enum import IntEnum\nclass E(IntEnum):\n    A = 2\n    B = 4\ndef double(x): return E(2 * x)",
}
