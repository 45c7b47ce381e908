"""Programs that try to get out, to forge, to stay, or to bring the pool down.

Each says ESCAPED where it reaches what it should not. `{name}` stands for what
the test has laid out for it, see `hostile_test.py`.
"""

# What several programs begin with.
_TRY = """
import os, sys
def attempt(what, function, *arguments):
  try:
    result = function(*arguments)
  except BaseException as error:
    print(what, type(error).__name__)
    return None
  if result not in (None, False, b"", "", [], -1):
    print("ESCAPED", what, repr(result)[:200])
  return result
def read(path):
  with open(path, "rb") as file:
    return file.read(4096)
"""

_LIBC = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *values):
  result = libc.syscall(ctypes.c_long(number), *values)
  return result if result > 0 else (True if result == 0 else None)
"""

# Looks for the call before in all of its own memory.
_MEMORY = """
import ctypes, gc
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
end = libc.sbrk(0) >> 12
pages = {{id(thing) >> 12 for thing in gc.get_objects()}}
pages |= {{*range(end - 8192, end)}}
readable, writable = os.pipe()
# Each letter is one further on: what is read here never becomes the secret.
further = bytes(i + 1 & 255 for i in range(256))
for page in pages:
  # A page that is not there gives an error here, and no crash.
  if libc.write(writable, ctypes.c_void_p(page << 12), 4096) > 0:
    if {further!r}.encode() in os.read(readable, 4096).translate(further):
      print('ESCAPED memory', hex(page))
"""

_READS = {
  "the ground truth": "attempt('read', read, {secret!r})",
  "the ground truth by a link": """
os.symlink({secret!r}, 'link')
attempt('link', read, 'link')
""",
  "the ground truth by dots": """
attempt('dots', read, '../' * 30 + {secret!r}.lstrip('/'))
""",
  "the folder of the run": "attempt('list', os.listdir, {folder!r})",
  "passwords": """
for path in ('/etc/passwd', '/etc/shadow', '/etc/hostname', '/etc/hosts'):
  attempt(path, read, path)
""",
  "the home folder": """
for path in ('/home', '/root/.ssh', '/root/.bashrc', '/root/.netrc'):
  attempt(path, lambda: os.listdir(path) if os.path.isdir(path) else read(path))
""",
  "every file below the root": """
import stat
for folder, names, files in os.walk('/'):
  for name in files:
    path = os.path.join(folder, name)
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode) and name.endswith(('.jsonl', '.parquet', '.secret')):
      print('ESCAPED', path)
""",
  "packages of the installation": """
ours = set(('numpy', 'numpy.libs', 'sympy', 'mpmath'))
for path in sys.path:
  packages = os.path.join(path, 'site-packages')
  if os.path.isdir(packages):
    attempt('packages', lambda: sorted(set(os.listdir(packages)) - ours))
""",
  "the environment": """
if {canary!r} in str(dict(os.environ)):
  print('ESCAPED environment')
for pid in ('self', '1', '2', {pid!r}):
  for name in ('environ', 'cmdline', 'maps', 'fd', 'root', 'cwd'):
    path = '/proc/' + str(pid) + '/' + name
    attempt(path, lambda: read(path) if name != 'fd' else os.listdir(path))
""",
  "the environment in memory": _LIBC
  + """
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')
at = 0
while environ and environ[at]:
  if {canary!r}.encode() in environ[at]:
    print('ESCAPED', environ[at])
  at += 1
""",
  "devices": """
for path in ('/dev/mem', '/dev/kmsg', '/dev/sda', '/dev/vda', '/dev/kvm',
             '/dev/tty', '/dev/ptmx', '/dev/fuse', '/dev/shm'):
  attempt(path, lambda: os.open(path, os.O_RDONLY))
""",
  "the kernel's files": """
for path in ('/sys', '/proc', '/sys/kernel', '/proc/sys', '/run', '/var'):
  attempt(path, os.listdir, path)
""",
  "the old root": """
for path in ('/old', '/.old', '/oldroot', '/mnt', '/proc/1/root'):
  attempt(path, os.listdir, path)
""",
  "the machine's name": """
import platform, socket
# `platform` remembers what it has once asked for.
for name in (os.uname().nodename, platform.node(), socket.gethostname()):
  if name == {host!r}: print('ESCAPED', name)
""",
}

_WRITES = {
  "to the root": "attempt('write', lambda: open('/x', 'w').write('x'))",
  "to the standard library": """
attempt('write', lambda: open(os.__file__, 'a').write('x = 1'))
folder = os.path.dirname(os.__file__)
attempt('make', lambda: open(folder + '/evil.py', 'w').write('x'))
attempt('remove', lambda: os.remove(os.__file__) or True)
attempt('rename', lambda: os.rename(os.__file__, 'os.py') or True)
attempt('chmod', lambda: os.chmod(os.__file__, 0o777) or True)
""",
  "to devices": """
attempt('mknod', lambda: os.mknod('sda', 0o60666, os.makedev(8, 0)) or True)
attempt('disk', lambda: os.open('sda', os.O_RDWR))
""",
  "names that stay": """
open('left', 'w').write({canary!r})
open('/tmp/left', 'w').write({canary!r})
os.mkdir('folder'); os.symlink('/etc', 'folder/link')
os.chmod('folder', 0)
attempt('shm', lambda: open('/dev/shm/left', 'w').write('x'))
attempt('var', lambda: open('/var/tmp/left', 'w').write('x'))
""",
  "a program with other rights": """
open('x', 'wb').write(b'x')
os.chmod('x', 0o6777)
attempt('setuid', lambda: os.execv('x', ['x']))
attempt('root', lambda: os.setuid(0) or True)
attempt('group', lambda: os.setgroups([0]) or True)
""",
}

# With the packages loaded.
_PACKAGES = {
  "reads by numpy": """
import numpy as np
for path in ({secret!r}, '/etc/passwd', '/proc/1/environ', '/dev/mem'):
  attempt(path, lambda: np.fromfile(path, np.uint8, 16).tolist())
  attempt(path, lambda: np.memmap(path, np.uint8, 'r', shape=4).tolist())
  attempt(path, lambda: np.loadtxt(path, str).tolist())
""",
  "writes to the packages": """
import numpy as np, sympy, mpmath
for package in (np, sympy, mpmath):
  folder = os.path.dirname(package.__file__)
  attempt('file', lambda: open(package.__file__, 'a').write('x = 1'))
  attempt('new', lambda: np.save(folder + '/evil', np.ones(1)) or True)
  attempt('beside', lambda: os.mkdir(os.path.dirname(folder) + '/evil') or True)
  attempt('rename', lambda: os.rename(folder, folder + '2') or True)
""",
  "calls the C library by numpy": """
import ctypes, numpy as np
libc = np.ctypeslib.load_library('libc.so.6', '/lib/x86_64-linux-gnu') if (
  os.path.exists('/lib/x86_64-linux-gnu/libc.so.6')) else ctypes.CDLL(None)
attempt('fork', lambda: max(libc.fork(), 0))
attempt('system', lambda: libc.system(b'true') == 0)
attempt('socket', lambda: max(libc.socket(2, 1, 0), 0))
""",
  "compiles by sympy": """
import sympy
from sympy.utilities.autowrap import autowrap
x = sympy.Symbol('x')
attempt('autowrap', lambda: autowrap(x + 1, backend='f2py')(1))
attempt('plot', lambda: sympy.preview(x, viewer='file', filename='x.png'))
""",
  "fills memory by numpy": """
import numpy as np
kept = []
try:
  while True: kept.append(np.ones(2**22))
except MemoryError: pass
""",
  "the memory of the call before": "import numpy" + _MEMORY,
  "never ends in sympy": """
import sympy
sympy.factorint(2**997 + 2**500 + 1)
""",
}

_PROCESSES = {
  "sees the trainer": """
for pid in ({pid}, 2, 3, os.getppid(), {pid} - 1):
  attempt('kill ' + str(pid), lambda: os.kill(pid, 0) or True) if pid > 1 else 0
""",
  "kills everything": """
import signal
for number in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
  for target in (-1, {pid}, os.getppid(), 0):
    try: os.kill(target, number)
    except OSError: pass
""",
  "kills its group": """
import signal
try: os.killpg(os.getpgid(0), signal.SIGKILL)
except OSError: pass
try: os.killpg(1, signal.SIGKILL)
except OSError: pass
""",
  "forks": """
attempt('fork', os.fork)
attempt('vfork', lambda: __import__('subprocess').run(['/bin/true']))
attempt('spawn', lambda: os.posix_spawn('/bin/sh', ['sh'], {{}}))
attempt('system', lambda: os.system('true') == 0)
attempt('exec', lambda: os.execv(sys.executable, ['python']))
""",
  "a fork bomb": "while True:\n  try: os.fork()\n  except OSError: break",
  "becomes a daemon": """
try:
  if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
      while True: pass
except OSError: pass
""",
  "clones by number": _LIBC
  + """
import platform
numbers = (56, 57, 58) if platform.machine() == 'x86_64' else (220,)
for number in numbers:
  for flags in (17, 0x10000000 | 17, 0x20000000 | 17, 0x4000 | 0x100 | 17):
    if call(number, ctypes.c_ulong(flags), 0, 0, 0, 0):
      print('ESCAPED', number, flags)
if call(435, (ctypes.c_char * 88)(), ctypes.c_size_t(88)):
  print('ESCAPED clone3')
""",
  "threads without end": """
import threading, time
def spin():
  while True: time.sleep(0.01)
for _ in range(5000):
  try: threading.Thread(target=spin, daemon=True).start()
  except BaseException: break
print('started')
""",
  "a thread that outlives it": """
import threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
os._exit(0)
""",
  "multiprocessing": """
import multiprocessing
attempt('pool', lambda: multiprocessing.Pool(2).map(abs, [1]))
""",
  "stops itself": "import signal\nos.kill(os.getpid(), signal.SIGSTOP)",
  "ignores signals": """
import signal
for number in range(1, 65):
  try: signal.signal(number, lambda *_: None)
  except (OSError, ValueError): pass
while True: pass
""",
  "catches everything": """
while True:
  try:
    while True: pass
  except BaseException: pass
""",
  "an alarm": """
import signal
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
signal.signal(signal.SIGALRM, lambda *_: os.kill(-1, 9))
try:
  while True: pass
finally:
  os._exit(0)
""",
}

_NETWORK = {
  "the trainer's port": """
import socket
attempt('tcp', lambda: socket.create_connection(('127.0.0.1', {port}), 1))
attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
""",
  "an abstract socket": """
import socket
def reach():
  made = socket.socket(socket.AF_UNIX)
  made.connect({abstract!r})
  return True
attempt('abstract', reach)
""",
  "listens": """
import socket
attempt('listen', lambda: socket.create_server(('127.0.0.1', 0)))
""",
  "families of sockets": """
import socket
for family in range(1, 46):
  for kind in (1, 2, 3, 5):
    try:
      socket.socket(family, kind)
      print('ESCAPED', family, kind)
    except OSError: pass
""",
  "leaves by a pair": """
import socket
one, two = socket.socketpair()
attempt('connect', lambda: one.connect({abstract!r}) or True)
attempt('send', lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(
  b'x', {abstract!r}))
attempt('bind', lambda: one.bind('\\0left') or True)
""",
  "the web": """
import urllib.request
attempt('http', lambda: urllib.request.urlopen('http://127.0.0.1:{port}/').read())
""",
}

_KERNEL = {
  "entries of devices": """
for name in ('null', 'zero', 'full', 'random', 'urandom'):
  path = '/dev/' + name
  for change in (
    lambda: os.utime(path),
    lambda: os.chmod(path, 0o666),
    lambda: os.chown(path, os.getuid(), os.getgid()),
  ):
    try: change()
    except OSError: continue
    print('ESCAPED', path)
""",
  "leases and notices of files that all read": """
import fcntl
place = os.path.dirname(os.__file__)
for path, command, value in (
  (place + '/antigravity.py', 1024, 0),
  (place + '/antigravity.py', 1024, 1),
  (place, 1026, 0x3f),
):
  descriptor = os.open(path, os.O_RDONLY)
  try: fcntl.fcntl(descriptor, command, value)
  except OSError: continue
  print('ESCAPED', command, path)
""",
  "timers of the user's": _LIBC
  + """
timer = ctypes.c_void_p()
count = 0
while count < 1000 and not libc.timer_create(1, None, ctypes.byref(timer)):
  count += 1
if count > 100: print('ESCAPED', count)
""",
  "pipes of a MiB each": """
import fcntl
try: fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)
except OSError: pass
else: print('ESCAPED')
""",
  "system calls": _LIBC
  + """
# ptrace, keyctl, bpf, userfaultfd, perf, mount, unshare, setns, io_uring, ...
import platform
numbers = {{
  'x86_64': (101, 248, 249, 250, 321, 323, 298, 165, 166, 155, 161, 272, 308,
    425, 426, 427, 428, 429, 430, 431, 432, 442, 303, 304, 310, 311, 312, 317,
    319, 29, 64, 68, 240, 434, 438, 246, 313, 175, 169, 170, 172, 135, 300,
    253, 294, 206, 162, 306),
  'aarch64': (117, 217, 218, 219, 280, 282, 241, 40, 39, 41, 51, 97, 268, 425,
    426, 427, 428, 429, 430, 431, 432, 442, 264, 265, 270, 271, 272, 277, 279,
    194, 190, 186, 180, 434, 438, 104, 273, 105, 142, 161, 92, 262, 26, 0, 81,
    267),
}}[platform.machine()]
for number in numbers:
  libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0)
  # EPERM, or ENOSYS for a call that this kernel lacks.
  if ctypes.get_errno() not in (1, 38):
    print('ESCAPED', number, os.strerror(ctypes.get_errno()))
""",
  "new namespaces": _LIBC
  + """
for flags in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x10020000):
  if libc.unshare(flags) == 0:
    print('ESCAPED unshare', hex(flags))
""",
  "mounts": _LIBC
  + """
for kind in (b'proc', b'sysfs', b'tmpfs', b'devpts', b'overlay'):
  if libc.mount(kind, b'/tmp', kind, 0, None) == 0:
    print('ESCAPED mount', kind)
if libc.mount(None, b'/', None, 32 | 4096, None) == 0: print('ESCAPED remount')
if libc.umount2(b'/tmp', 2) == 0: print('ESCAPED umount')
if libc.chroot(b'/tmp') == 0: print('ESCAPED chroot')
""",
  "rights": _LIBC
  + """
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)()
libc.capget(header, data)
if any(data): print('ESCAPED rights', list(data))
full = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
if libc.capset(header, full) == 0: print('ESCAPED capset')
if libc.prctl(39, 0, 0, 0, 0) != 1: print('ESCAPED no_new_privs')
if libc.prctl(21, 0, 0, 0, 0) != 2: print('ESCAPED no filter')
""",
  "limits": """
import resource
for name in ('AS', 'NPROC', 'FSIZE', 'NOFILE', 'CPU', 'CORE', 'MEMLOCK'):
  kind = getattr(resource, 'RLIMIT_' + name)
  try:
    resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print('ESCAPED', name)
  except (ValueError, OSError): pass
""",
  "shared memory": """
from multiprocessing import shared_memory
attempt('posix', lambda: shared_memory.SharedMemory('{canary}', True, 16))
import ctypes
libc = ctypes.CDLL(None)
if libc.shmget({key}, 16, 0o666) >= 0: print('ESCAPED shmget')
if libc.shmget(4242, 16, 0o1666) >= 0: print('ESCAPED shmget new')
if libc.semget(4242, 1, 0o1666) >= 0: print('ESCAPED semget')
if libc.msgget(4242, 0o1666) >= 0: print('ESCAPED msgget')
""",
  "keys": _LIBC
  + """
import platform
add, ctl = (248, 250) if platform.machine() == 'x86_64' else (217, 219)
if call(add, b'user', b'left', b'x', 1, -3): print('ESCAPED add_key')
if call(ctl, 0, -3, 1): print('ESCAPED keyctl')
""",
  "the machine's clock and name": """
import socket, time
attempt('clock', lambda: time.clock_settime(time.CLOCK_REALTIME, 0) or True)
attempt('name', lambda: socket.sethostname('evil') or True)
""",
  "32-bit calls": """
import ctypes, mmap, platform
if platform.machine() == 'x86_64':
  page = mmap.mmap(-1, 4096, prot=7)
  # mov eax, 20 (getpid of i386); int 0x80; ret
  page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')
  at = ctypes.addressof(ctypes.c_char.from_buffer(page))
  result = ctypes.CFUNCTYPE(ctypes.c_int)(at)()
  if result > 0: print('ESCAPED', result)
""",
  "priorities": """
attempt('nice', lambda: os.nice(-10) and True)
attempt('realtime', lambda: os.sched_setscheduler(
  0, os.SCHED_FIFO, os.sched_param(50)) or True)
""",
  "many watches": """
import select
kept = []
try:
  while True: kept.append(select.epoll())
except OSError: pass
""",
}

_OTHERS = {
  "frames": """
frame = sys._getframe()
seen = []
while frame:
  seen.append(repr(frame.f_locals) + repr(list(frame.f_globals)))
  frame = frame.f_back
if {backwards!r} in ''.join(seen)[::-1]: print('ESCAPED frames')
""",
  "objects": """
import gc
for thing in gc.get_objects():
  try: text = repr(thing)
  except BaseException: continue
  if {backwards!r} in text[::-1]: print('ESCAPED objects', text[:100])
""",
  "memory": _MEMORY,
  "descriptors": """
for fd in range(3, 2000):
  try: os.fstat(fd)
  except OSError: continue
  print('ESCAPED', fd)
""",
  "writes to descriptors": """
for fd in range(3, 2000):
  try:
    if os.write(fd, b'\\x02' * 64): print('ESCAPED', fd)
  except OSError: pass
""",
  "a forged reply": """
import struct
for fd in (0, 1, 2):
  for frame in (struct.pack('<B16siI', ord('D'), bytes(16), 0, 0),
                struct.pack('<BI', 0, 3) + b'42\\n'):
    try: os.write(fd, frame)
    except OSError: pass
""",
  "reads what was written": """
for fd in (1, 2):
  try:
    if os.read(fd, 10): print('ESCAPED', fd)
  except OSError: pass
""",
  "closes everything": "os.closerange(0, 2000)",
  "blocks its output": """
import fcntl
for fd in (0, 1, 2):
  fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
  try: fcntl.fcntl(fd, 1031, 4096)
  except OSError: pass
""",
  "waits for input": "sys.stdin.read(); os.read(0, 10)",
  "a changed module": """
import math, json, builtins, random
math.pi = 3; json.dumps = None; builtins.print = None; random.seed = None
sys.modules.clear(); sys.path[:] = []
os.write = os._exit = None
""",
  "a core file": """
import ctypes, resource
libc = ctypes.CDLL(None)
if libc.prctl(4, 1, 0, 0, 0) == 0 or libc.prctl(3, 0, 0, 0, 0):
  print('ESCAPED core files are allowed')
try: resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))
except (ValueError, OSError): pass
os.abort()
""",
  "an error that looks like a mark of the server": """
os.write(2, b'\\0\\1' * 100)
raise ValueError('\\0' * 100)
""",
  "limits of others": """
import resource
for pid in (2, {pid}):
  attempt('prlimit', lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE))
""",
  "the server's own functions": """
import inspect
frame = sys._getframe(1)
while frame:
  for name, thing in list(frame.f_globals.items()):
    if name in ('_tell', '_report', '_live', '_Zygote'):
      try: thing(*(b'x',) * 4)
      except BaseException: pass
  frame = frame.f_back
""",
  "hooks": """
sys.settrace(lambda *_: None)
sys.excepthook = sys.unraisablehook = sys.displayhook = None
sys.setrecursionlimit(10**9)
sys.stdout = sys.stderr = None
raise ValueError
""",
  "the end of a program": """
import atexit
@atexit.register
def late():
  while True: pass
""",
  "an error that cannot be shown": """
class Evil(Exception):
  def __str__(self): os._exit(0)
  __repr__ = __str__
raise Evil
""",
  "an exit code that cannot be shown": """
class Evil:
  def __str__(self): raise SystemExit(self)
raise SystemExit(Evil())
""",
}

_BOMBS = {
  "memory": "x = []\nwhile True: x.append('x' * 10**7)",
  "memory at once": "x = bytearray(2**40)",
  "memory in maps": """
import mmap
kept = []
while True: kept.append(mmap.mmap(-1, 1 << 24))
""",
  "files": """
at = 0
while True:
  at += 1
  open(str(at), 'w').write('x')
""",
  "one file": "file = open('x', 'wb')\nwhile True: file.write(b'x' * 2**20)",
  "a sparse file": "file = open('x', 'wb'); file.truncate(2**40)",
  "deep folders": "while True:\n  os.mkdir('x'); os.chdir('x')",
  "links": "open('x', 'w')\nfor i in range(10**6): os.link('x', str(i))",
  "descriptors": "kept = []\nwhile True: kept.append(os.pipe())",
  "pipes": """
kept = []
try:
  while True:
    kept.append(os.pipe())
    os.set_blocking(kept[-1][1], False)
    try: os.write(kept[-1][1], b'x' * 10**6)
    except OSError: pass
except OSError: pass
""",
  "recursion": "def f(): f()\nsys.setrecursionlimit(10**8)\nf()",
  "a deep expression": "eval('(' * 10**5 + ')' * 10**5)",
  "a deep tree": "eval('-' * 10**6 + '1')",
  "a long number": "x = 10**10**8",
  "a regular expression": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
  "output": "while True: print('x' * 10**5)",
  "output without lines": "while True: os.write(1, b'x')",
  "errors without end": "while True: os.write(2, b'x' * 10**5)",
  "bytes that are no text": "os.write(1, bytes(range(256)) * 4)",
  "control characters": "print('\\0\\x1b[2J\\x07' * 100)",
  "a crash": "import ctypes; ctypes.string_at(0)",
  "a jump": "import ctypes; ctypes.CFUNCTYPE(None)(1)()",
  "an abort": "os.abort()",
  "a broken interpreter": """
import ctypes
ctypes.memset(id(None), 0, 16)
x = None
""",
  "a cycle of finalizers": """
class Evil:
  def __del__(self): Evil()
Evil()
while True: pass
""",
  "sleep": "import time\ntime.sleep(10**6)",
  "a lock": """
import _thread
lock = _thread.allocate_lock()
lock.acquire()
lock.acquire()
""",
  "pauses": "import signal\nwhile True: signal.pause()",
  "surrogates": "print('\\ud800')",
  "a null in the source": "x = 1\0\nprint(x)",
}

GROUPS = {
  "reads": _READS,
  "writes": _WRITES,
  "packages": _PACKAGES,
  "processes": _PROCESSES,
  "network": _NETWORK,
  "kernel": _KERNEL,
  "others": _OTHERS,
  "bombs": _BOMBS,
}


def programs(**values: object) -> dict[str, str]:
  """All programs by name, filled in."""
  return {
    f"{group}: {name}": _TRY + text.format(**values)
    for group, members in GROUPS.items()
    for name, text in members.items()
  }
