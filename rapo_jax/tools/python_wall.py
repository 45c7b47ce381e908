"""What Linux keeps a program in with: namespaces, a root, a filter of calls.

Only the server of the python tool uses this, as a module of a program of its
own. Everything here goes through the C library, so that no package is needed.
User namespaces let an ordinary user build the same walls as root.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence

NOBODY = 65534
PACKAGES = "/packages"
"""Where programs find the packages that they may import."""
PROGRAM_FOLDERS = ("/tmp", "/var/tmp", "/usr/tmp")
"""Where a program may write: the first that does not hide an installation.

Those that `tempfile` tries.
"""

_LIBC = ctypes.CDLL(None, use_errno=True)
# Not by `platform`, which keeps the machine's own name for programs to find.
_MACHINE = os.uname().machine

_CLONE_NEWNS = 0x00020000
_CLONE_NEWCGROUP = 0x02000000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_CLONE_THREAD = 0x00010000
_NEW_NAMESPACES = (
  _CLONE_NEWNS
  | _CLONE_NEWCGROUP
  | _CLONE_NEWUTS
  | _CLONE_NEWIPC
  | _CLONE_NEWUSER
  | _CLONE_NEWPID
  | _CLONE_NEWNET
  | 0x00000080  # CLONE_NEWTIME
)

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _AT_EMPTY_PATH = -100, 0x8000, 0x1000
_SYS_MOUNT_SETATTR = 442

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
# Root's rights off for good, and none kept over a change of user.
_SECUREBITS = 0b101111
_LAST_CAPABILITY = 63
_CAPSET_HEADER = struct.pack("<Ii", 0x20080522, 0)

_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = ("/lib", "/lib32", "/lib64", "/libx32")
_DATA = ("/etc/ld.so.cache", "/usr/share/zoneinfo")


class WallError(Exception):
  """A layer could not be built; the text says which, and why."""


def _check(result: int, what: str) -> None:
  if result:
    code = ctypes.get_errno()
    raise WallError(f"{what}: {os.strerror(code)} (errno {code})")


def _prctl(option: int, *values: object) -> int:
  return _LIBC.prctl(option, *values, *(0 for _ in range(4 - len(values))))


def die_with_parent(signal_number: int) -> None:
  """Has the kernel send this process a signal when its parent ends."""
  _check(_prctl(_PR_SET_PDEATHSIG, signal_number), "PR_SET_PDEATHSIG")


def leave_namespaces() -> None:
  """Enters new namespaces of every kind; the user's ids are not mapped yet.

  The first child is the first process of the new process-id namespace.
  """
  kinds = (
    _CLONE_NEWUSER
    | _CLONE_NEWNS
    | _CLONE_NEWPID
    | _CLONE_NEWNET
    | _CLONE_NEWIPC
    | _CLONE_NEWUTS
    | _CLONE_NEWCGROUP
  )
  _check(_LIBC.unshare(kinds), "new user namespace")


def map_ids(pid: int) -> None:
  """Maps the users of another process's new user namespace, from outside.

  Root maps itself, to build the root file system, and `nobody`, which programs
  run as. An ordinary user is `nobody` there.
  """
  user, group = os.geteuid(), os.getegid()
  if user == 0:
    users = groups = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
  else:
    users, groups = f"{NOBODY} {user} 1\n", f"{NOBODY} {group} 1\n"
    _write(f"/proc/{pid}/setgroups", "deny")
  _write(f"/proc/{pid}/uid_map", users)
  _write(f"/proc/{pid}/gid_map", groups)


def _write(path: str, text: str) -> None:
  handle = os.open(path, os.O_WRONLY)
  try:
    os.write(handle, text.encode("ascii"))
  finally:
    os.close(handle)


def build_root(
  standard_library: str, libraries: Sequence[str], packages: Sequence[str]
) -> str:
  """Makes a root that holds nothing but what the interpreter reads.

  Args:
    standard_library: its folder; `site-packages` in it is hidden.
    libraries: what else it reads: folders of the shared objects that its
      modules load, and archives.
    packages: folders of the packages that programs may import. They appear in
      `PACKAGES`, wherever they are installed.

  Returns:
    The folder for programs, which `make_program_folder` fills.
  """
  os.umask(0o022)
  _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
  # A mount point that is always there and under which nothing is needed.
  root = "/proc"
  _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
  visible = _apart([standard_library, *libraries])
  for folder in visible:
    _bind(folder, root)
  hidden = os.path.join(root + standard_library, "site-packages")
  if os.path.isdir(hidden):
    flags = _MS_NOSUID | _MS_NODEV | _MS_RDONLY
    _mount("tmpfs", hidden, "tmpfs", flags, "mode=755,size=4k")
  os.makedirs(root + PACKAGES)
  for folder in packages:
    _bind(folder, root, os.path.join(PACKAGES, os.path.basename(folder)))
  for path in _DATA:
    if os.path.exists(path):
      _bind(path, root)
  for device in _DEVICES:
    _bind(f"/dev/{device}", root, device=True)
  for link in _LINKS:
    if os.path.islink(link) and not os.path.lexists(root + link):
      os.symlink(os.readlink(link), root + link)
  program_folder = next(
    folder
    for folder in PROGRAM_FOLDERS
    if not any(f"{path}/".startswith(f"{folder}/") for path in visible)
  )
  os.makedirs(root + program_folder, exist_ok=True)
  os.mkdir(root + "/old")
  number = ctypes.c_long(_ARCH.pivot_root)
  _check(
    _LIBC.syscall(number, root.encode(), f"{root}/old".encode()), "pivot_root"
  )
  os.chdir("/")
  _check(_LIBC.umount2(b"/old", _MNT_DETACH), "umount of the old root")
  os.rmdir("/old")
  # The new namespace begins with the machine's name.
  _check(_LIBC.sethostname(b"python", 6), "host name")
  _read_only("/", recursive=False)
  return program_folder


def _apart(folders: Iterable[str]) -> list[str]:
  """The paths that lie in none of the others."""
  chosen: list[str] = []
  for folder in sorted(set(folders)):
    if not any(folder.startswith(f"{parent}/") for parent in chosen):
      chosen.append(folder)
  return chosen


def _mount(
  source: str, target: str, kind: str | None, flags: int, data: str = ""
) -> None:
  _check(
    _LIBC.mount(
      source.encode(),
      os.fsencode(target),
      kind and kind.encode(),
      ctypes.c_ulong(flags),
      data.encode() or None,
    ),
    f"mount on {target}",
  )


def _bind(
  path: str, root: str, place: str | None = None, *, device: bool = False
) -> None:
  """Shows a file or folder under the new root, read-only.

  Args:
    path: what is shown.
    root: the new root.
    place: where it appears; None for its own path.
    device: whether it is one.
  """
  target = root + (path if place is None else place)
  if os.path.isdir(path):
    os.makedirs(target, exist_ok=True)
  else:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
  _check(
    _LIBC.mount(
      os.fsencode(path),
      os.fsencode(target),
      None,
      ctypes.c_ulong(_MS_BIND | _MS_REC),
      None,
    ),
    f"bind mount of {path}",
  )
  _read_only(target, recursive=True, device=device)


def _read_only(target: str, *, recursive: bool, device: bool = False) -> None:
  # struct mount_attr: set, clear, propagation, user namespace. `mount_setattr`
  # adds flags and keeps those that may not be taken away. A device can be
  # written to all the same. The flags protect its entry alone: who may use it,
  # and its times.
  flags = _MS_NOSUID | _MS_RDONLY | (_MS_NOEXEC if device else _MS_NODEV)
  attributes = struct.pack("<QQQQ", flags, 0, 0, 0)
  _check(
    _LIBC.syscall(
      ctypes.c_long(_SYS_MOUNT_SETATTR),
      ctypes.c_int(_AT_FDCWD),
      os.fsencode(target),
      ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
      attributes,
      ctypes.c_size_t(len(attributes)),
    ),
    f"read-only {target} (Linux 5.12 or later)",
  )


def open_process_namespace() -> int:
  """A descriptor to come back to this process's own process-id namespace."""
  return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def next_child_in_own_namespace(own: int) -> None:
  """Has the next fork begin a process-id namespace of its own."""
  _check(_LIBC.setns(own, _CLONE_NEWPID), "setns")
  _check(_LIBC.unshare(_CLONE_NEWPID), "new process-id namespace")


def make_program_folder(folder: str, size_bytes: int, max_files: int) -> None:
  """Makes an empty folder in memory and enters it; it ends with this process.

  Args:
    folder: where it appears.
    size_bytes: most bytes in it.
    max_files: most files and folders in it.

  Raises:
    WallError: the kernel allows no mount here.
  """
  _check(_LIBC.unshare(_CLONE_NEWNS), "new mount namespace")
  options = f"mode=1777,size={size_bytes},nr_inodes={max_files}"
  flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
  _mount("tmpfs", folder, "tmpfs", flags, options)
  os.chdir(folder)


def bound_rights() -> None:
  """Sees to it that no child regains a right that it has given up."""
  for capability in range(_LAST_CAPABILITY + 1):
    if _prctl(_PR_CAPBSET_DROP, capability):
      break  # The kernel knows no more.
  _check(_prctl(_PR_SET_SECUREBITS, _SECUREBITS), "secure bits")


def drop_rights(user: int) -> None:
  """Gives up every capability and becomes a user of the namespace."""
  if os.getuid() != user:
    # Only root changes its user, and it may change its groups.
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
  # Version 3, for this process: no effective, permitted or inherited right.
  _check(_LIBC.capset(_CAPSET_HEADER, bytes(24)), "capset")
  _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
  # A core file of a program would be written outside, by a helper of the
  # machine, whatever RLIMIT_CORE says.
  _check(_prctl(_PR_SET_DUMPABLE, 0), "PR_SET_DUMPABLE")


class _Architecture:
  """Numbers of the system calls that a program is refused.

  Attributes:
    audit: the kernel's name of the architecture.
    clone: number of `clone`, of which threads alone pass.
    socketpair: number of `socketpair`, of which pairs of one process pass.
    prctl: number of `prctl`, which may not allow core files again.
    fcntl: number of `fcntl`. It may take no lease of a file that others read,
      nor be notified of it. It may not enlarge a pipe.
    pivot_root: its number; the C library has no function for it.
    refused: numbers that give EPERM.
    busy: numbers that give EAGAIN, as a process limit does.
  """

  def __init__(
    self,
    audit: int,
    clone: int,
    socketpair: int,
    prctl: int,
    fcntl: int,
    pivot_root: int,
    refused: Sequence[int],
    busy: Sequence[int],
  ):
    self.audit, self.clone, self.socketpair = audit, clone, socketpair
    self.prctl, self.fcntl, self.pivot_root = prctl, fcntl, pivot_root
    self.refused = (*refused, *_COMMON)
    self.busy = busy


# Numbers that all architectures share: pidfd_send_signal, io_uring, the new
# mount calls, pidfd_open, pidfd_getfd, process_madvise. What is newer than
# `epoll_pwait2` does not exist for a program.
_COMMON = (*range(424, 428), *range(428, 434), 434, 438, 440)
_LAST_KNOWN = 441
_CLONE3 = 435

# fmt: off
_ARCHITECTURES = {
  "x86_64": _Architecture(
    audit=0xC000003E, clone=56, socketpair=53, prctl=157, fcntl=72,
    pivot_root=155,
    refused=(
      # Other processes' memory, tracing, programs.
      59, 322, 101, 310, 311, 312,
      # Keys, BPF, page faults, performance counters, seccomp's listeners.
      248, 249, 250, 321, 323, 298, 317,
      # Mounts, roots, namespaces.
      165, 166, 155, 161, 272, 308,
      # Handles of files, quotas, accounting, swap.
      303, 304, 179, 443, 163, 167, 168, 212, 180,
      # What all programs of a user or of the machine share a number of:
      # notifications of files, asynchronous input. The disk's flush.
      300, 253, 294, 206, 162, 306,
      # The kernel, its modules, the clock, names, ports, its log.
      246, 320, 175, 313, 174, 176, 177, 178, 169, 103, 153,
      164, 159, 227, 305, 170, 171, 172, 173, 135, 154,
      # Sockets; memory that is shared or hidden; queues.
      41, 42, 43, 49, 50, 288, 319,
      29, 30, 31, 67, 64, 65, 66, 220, 68, 69, 70, 71, *range(240, 246),
      # NUMA placement of others' pages.
      256, 279,
    ),
    busy=(57, 58),
  ),
  "aarch64": _Architecture(
    audit=0xC00000B7, clone=220, socketpair=199, prctl=167, fcntl=25,
    pivot_root=41,
    refused=(
      221, 281, 117, 270, 271, 272,
      217, 218, 219, 280, 282, 241, 277,
      40, 39, 41, 51, 97, 268,
      264, 265, 60, 443, 89, 224, 225, 18, 42,
      262, 26, 0, 81, 267,
      104, 294, 105, 273, 106, 142, 116, 58,
      170, 171, 112, 266, 161, 162, 92,
      198, 203, 202, 200, 201, 242, 279,
      *range(194, 198), *range(190, 194), *range(186, 190), *range(180, 186),
      238, 239,
    ),
    busy=(),
  ),
}
# fmt: on
_ARCH = _ARCHITECTURES.get(_MACHINE, _ARCHITECTURES["x86_64"])

# BPF: load a word, jump if equal, greater or any bit is set, and return.
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER, _AUDIT, _ARGUMENT, _SECOND = 0, 4, 16, 24
_AF_UNIX = 1
_F_SETLEASE, _F_NOTIFY, _F_SETPIPE_SZ = 1024, 1026, 1031


class Filter:
  """The system calls that a program may make, compiled once.

  What is refused gives an error and not a death, so that a program learns why.
  Calls of another architecture (32 bit) end the program.

  Raises:
    WallError: the architecture is not known.
  """

  def __init__(self, *, threads: bool) -> None:
    """Compiles the filter.

    Args:
      threads: whether a program may start some.
    """
    if _MACHINE not in _ARCHITECTURES:
      raise WallError(
        f"system-call filter: known for {', '.join(_ARCHITECTURES)}, and not "
        f"for {_MACHINE}"
      )
    lines = _filter(_ARCH, threads=threads)
    code = b"".join(struct.pack("<HBBI", *line) for line in lines)
    self._code = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a length, padding, a pointer.
    address = ctypes.addressof(self._code)
    program = struct.pack("<HxxxxxxQ", len(lines), address)
    self._program = ctypes.create_string_buffer(program, len(program))

  def install(self) -> None:
    """Filters this process's calls from now on; there is no way back.

    Raises:
      WallError: the kernel has no filters.
    """
    _check(
      _prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(self._program)
      ),
      "system-call filter",
    )


def _filter(
  arch: _Architecture, *, threads: bool
) -> list[tuple[int, int, int, int]]:
  """The filter as lines of BPF: code, jump if true, jump if false, operand."""

  def fails(code: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, 0x00050000 | code)

  lines = [
    (_LOAD, 0, 0, _AUDIT),
    (_EQUAL, 1, 0, arch.audit),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, _NUMBER),
    # Those of x32 and those that a later kernel has.
    (_GREATER, 0, 1, _LAST_KNOWN),
    fails(errno.ENOSYS),
    (_EQUAL, 0, 1, _CLONE3),
    # So that the C library takes `clone`, whose flags can be seen.
    fails(errno.ENOSYS),
  ]
  for number in sorted(set(arch.refused)):
    lines += [(_EQUAL, 0, 1, number), fails(errno.EPERM)]
  for number in arch.busy:
    lines += [(_EQUAL, 0, 1, number), fails(errno.EAGAIN)]
  return [
    *lines,
    (_EQUAL, 0, 5, arch.clone),
    (_LOAD, 0, 0, _ARGUMENT),
    (_ANY_BIT, 2, 0, _NEW_NAMESPACES & 0xFFFFFFFF),
    (_ANY_BIT, 0, 1, _CLONE_THREAD if threads else 0),
    (_RETURN, 0, 0, _ALLOW),
    fails(errno.EAGAIN),
    (_EQUAL, 0, 3, arch.socketpair),
    (_LOAD, 0, 0, _ARGUMENT),
    (_EQUAL, 1, 0, _AF_UNIX),
    fails(errno.EPERM),
    (_EQUAL, 0, 5, arch.fcntl),
    (_LOAD, 0, 0, _SECOND),
    (_EQUAL, 2, 0, _F_SETLEASE),
    (_EQUAL, 1, 0, _F_NOTIFY),
    (_EQUAL, 0, 1, _F_SETPIPE_SZ),
    fails(errno.EPERM),
    (_EQUAL, 0, 3, arch.prctl),
    (_LOAD, 0, 0, _ARGUMENT),
    (_EQUAL, 0, 1, _PR_SET_DUMPABLE),
    fails(errno.EPERM),
    (_RETURN, 0, 0, _ALLOW),
  ]
