"""A file system that behaves as one across a network may: one store, mounted at several places that stand for hosts.

It speaks the kernel's FUSE protocol itself (linux/fuse.h, version 7.31), from threads of the test, and keeps files in a plain folder.
What one host makes, another sees only some time after it was closed or renamed; there is no flock, no fallocate, no exchange of two
names; and calls fail, or write half, where a test says so. Mounts are of a name space of the process's own and end with it.
"""
import ctypes
import errno
import os
import stat
import struct
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 1 << 14, 1 << 18
DIRECT_IO, FLOCK_LOCKS, MOST_BYTES = 1, 1 << 10, 1 << 17
OPERATIONS = {1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 9: "mkdir", 10: "unlink", 11: "rmdir", 12: "rename", 14: "open", 15: "read",
              16: "write", 17: "statfs", 18: "release", 20: "fsync", 25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "releasedir",
              30: "fsyncdir", 31: "lock", 32: "lock", 33: "lock", 34: "access", 35: "create", 42: "forget", 45: "rename2"}


def can_mount():
    """Whether this process may mount FUSE; then it has mounts of its own from now on."""
    return (os.path.exists("/dev/fuse") and LIBC.unshare(CLONE_NEWNS) == 0 and
            LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0)


class Store:
    def __init__(self, folder, delay=0):
        self.folder, self.delay = os.path.abspath(folder), delay
        self.seen_from = {}  # path: the host that made it, when the others see it
        self.faults = []     # [operation, part of the path, errno, "short" or "flip" (of a bit), how many times, how many pass before]
        self.calls, self.hidden = {}, 0
        os.makedirs(folder)

    def made(self, host, path, when=None):
        self.seen_from[path] = (host, time.monotonic() + self.delay if when is None else when)

    def check_seen(self, host, path):
        while len(path) > len(self.folder):
            maker, when = self.seen_from.get(path, (host, 0))
            if maker != host and time.monotonic() < when:
                self.hidden += 1
                raise FileNotFoundError(errno.ENOENT, path)
            path = os.path.dirname(path)

    def fault(self, operation, path):
        self.calls[operation] = self.calls.get(operation, 0) + 1
        for fault in self.faults:
            if fault[0] == operation and fault[1] in path and fault[3] > 0:
                fault[4] -= 1
                if fault[4] < 0:
                    fault[3] -= 1
                    if fault[2] in ("short", "flip"):
                        return fault[2]
                    raise OSError(fault[2], path)
        return None


class Host:
    """One mount of a store."""

    def __init__(self, store, place):
        self.store, self.place = store, place
        self.paths, self.nodes, self.files = {1: store.folder}, {store.folder: 1}, {}
        os.makedirs(place)
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,max_read={MOST_BYTES}"
        if LIBC.mount(b"network-disk", place.encode(), b"fuse.network-disk", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        threading.Thread(target=self.serve, daemon=True).start()

    def unmount(self):
        LIBC.umount2(self.place.encode(), 2)

    def serve(self):
        while True:
            try:
                request = os.read(self.device, MOST_BYTES + 8192)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return
            _, operation, unique, node = struct.unpack_from("=IIQQ", request)
            name = OPERATIONS.get(operation)
            if name == "forget":
                continue
            try:
                handler = getattr(self, name) if name else None
                if handler is None:
                    raise OSError(errno.ENOSYS, "")
                answer, failed = handler(node, request[40:]), 0
            except OSError as error:
                answer, failed = b"", -error.errno
            try:
                os.write(self.device, struct.pack("=IiQ", 16 + len(answer), failed, unique) + answer)
            except OSError as error:
                if error.errno != errno.ENOENT:  # the caller was interrupted
                    return

    # ---- names

    def path(self, node):
        self.store.check_seen(self, self.paths[node])
        return self.paths[node]

    def below(self, node, name):
        return os.path.join(self.path(node), name.split(b"\0")[0].decode())

    def node(self, path):
        if path not in self.nodes:
            self.nodes[path] = len(self.paths) + 1
            self.paths[self.nodes[path]] = path
        return self.nodes[path]

    def renamed(self, old, new):
        for node, path in list(self.paths.items()):
            if path == new or path.startswith(new + "/"):
                self.nodes.pop(path, None)
        for node, path in list(self.paths.items()):
            if path == old or path.startswith(old + "/"):
                self.nodes.pop(path, None)
                self.paths[node] = new + path[len(old):]
                self.nodes[self.paths[node]] = node

    # ---- answers

    def attributes(self, path):
        s = os.lstat(path)
        return struct.pack("=6Q10I", self.node(path), s.st_size, s.st_blocks, int(s.st_atime), int(s.st_mtime), int(s.st_ctime), 0, 0, 0, s.st_mode,
                           s.st_nlink, s.st_uid, s.st_gid, 0, 4096, 0)

    def entry(self, path):
        attributes = self.attributes(path)
        return struct.pack("=4Q2I", self.node(path), 0, 0, 0, 0, 0) + attributes

    def opened(self, path, flags):
        descriptor = os.open(path, flags & ~(os.O_DIRECT | os.O_NOFOLLOW), 0o666)
        self.files[descriptor] = (path, flags & os.O_ACCMODE != os.O_RDONLY)
        return struct.pack("=Q2I", descriptor, DIRECT_IO, 0)

    # ---- operations

    def init(self, node, body):
        return struct.pack("=4I2H2I2HI7I", 7, 31, MOST_BYTES, FLOCK_LOCKS, 16, 12, MOST_BYTES, 1, 0, 0, 0, *[0] * 7)

    def lookup(self, node, body):
        path = self.below(node, body)
        self.store.check_seen(self, path)
        return self.entry(path)

    def getattr(self, node, body):
        path = self.path(node)
        self.store.fault("getattr", path)
        return struct.pack("=Q2I", 0, 0, 0) + self.attributes(path)

    def setattr(self, node, body):
        valid, _, _, size = struct.unpack_from("=IIQQ", body)
        if valid & 8:
            os.truncate(self.path(node), size)
        return struct.pack("=Q2I", 0, 0, 0) + self.attributes(self.path(node))

    def mkdir(self, node, body):
        path = self.below(node, body[8:])
        os.mkdir(path)
        self.store.made(self, path)
        return self.entry(path)

    def unlink(self, node, body):
        path = self.below(node, body)
        self.store.check_seen(self, path)
        os.unlink(path)
        return b""

    def rmdir(self, node, body):
        os.rmdir(self.below(node, body))
        return b""

    def rename(self, node, body):
        target, = struct.unpack_from("=Q", body)
        old, new = body[8:].split(b"\0")[:2]
        old, new = self.below(node, old), self.below(target, new)
        self.store.fault("rename", new)
        os.rename(old, new)
        for host in HOSTS:
            host.renamed(old, new)
        self.store.made(self, new)
        return b""

    def rename2(self, node, body):
        if struct.unpack_from("=QI", body)[1] != 0:
            raise OSError(errno.EINVAL, "")
        return self.rename(node, body[:8] + body[16:])

    def open(self, node, body):
        path = self.path(node)
        self.store.fault("open", path)
        return self.opened(path, struct.unpack_from("=I", body)[0])

    def create(self, node, body):
        path = self.below(node, body[16:])
        self.store.fault("create", path)
        opened = self.opened(path, struct.unpack_from("=I", body)[0] | os.O_CREAT)
        self.store.made(self, path, float("inf"))
        return self.entry(path) + opened

    def read(self, node, body):
        descriptor, offset, size = struct.unpack_from("=QQI", body)
        fault = self.store.fault("read", self.files[descriptor][0])
        data = os.pread(descriptor, size // 2 if fault == "short" and size > 1 else size, offset)
        return bytes([data[0] ^ 1]) + data[1:] if fault == "flip" and data else data

    def write(self, node, body):
        descriptor, offset, size = struct.unpack_from("=QQI", body)
        short = self.store.fault("write", self.files[descriptor][0])
        return struct.pack("=II", os.pwrite(descriptor, body[40:40 + (size // 2 if short and size > 1 else size)], offset), 0)

    def release(self, node, body):
        descriptor, = struct.unpack_from("=Q", body)
        path, written = self.files.pop(descriptor)
        os.close(descriptor)
        path = self.paths.get(node, path)
        if written and self.store.seen_from.get(path, (None, 0))[1] == float("inf"):
            self.store.made(self, path)
        return b""

    def fsync(self, node, body):
        descriptor, = struct.unpack_from("=Q", body)
        self.store.fault("fsync", self.files[descriptor][0])
        os.fsync(descriptor)
        return b""

    def flush(self, node, body):
        return b""

    fsyncdir = access = releasedir = flush

    def lock(self, node, body):
        self.store.fault("lock", self.path(node))
        raise OSError(errno.ENOLCK, "")

    def opendir(self, node, body):
        self.store.fault("opendir", self.path(node))
        return struct.pack("=Q2I", 0, 0, 0)

    def readdir(self, node, body):
        _, offset, size = struct.unpack_from("=QQI", body)
        folder, out = self.path(node), b""
        for place, name in enumerate(sorted(os.listdir(folder))[offset:], offset + 1):
            path = os.path.join(folder, name)
            try:
                self.store.check_seen(self, path)
                kind = os.lstat(path).st_mode
            except FileNotFoundError:
                continue
            text = name.encode()
            one = struct.pack("=QQII", self.node(path), place, len(text), stat.S_IFMT(kind) >> 12) + text
            one += b"\0" * (-len(one) % 8)
            if len(out) + len(one) > size:
                break
            out += one
        return out

    def statfs(self, node, body):
        s = os.statvfs(self.store.folder)
        return struct.pack("=5Q4I6I", s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, 255, s.f_frsize, 0, *[0] * 6)


HOSTS = []


def mount(store, place):
    host = Host(store, os.path.abspath(place))
    HOSTS.append(host)
    return host
