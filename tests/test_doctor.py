#!/usr/bin/env python3
"""athanor doctor: each thing that stands in a newcomer's way, made so, is a note that says what to do; and it never waits for it."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

ATHANOR = os.environ.get("ATHANOR") or sys.exit(77)
# What the machine answers about its own name: after so many seconds, yes or no.
NAME = r"""
#define _GNU_SOURCE
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int gethostname(char *name, size_t size) { strncpy(name, "furnace", size); return 0; }
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **answer) {
    if (strcmp(name, "furnace") != 0) return EAI_FAIL;
    usleep((useconds_t)(atof(getenv("NAME_SECONDS")) * 1e6));
    return atoi(getenv("NAME_FOUND")) ? 0 : EAI_NONAME;
}
"""


def doctor(*before, **environment):
    """What it found, and in how many seconds."""
    began = time.monotonic()
    done = subprocess.run([*before, ATHANOR, "doctor", "--json"], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), time.monotonic() - began


class Doctor(unittest.TestCase):
    def note(self, found, *parts):
        self.assertTrue(any(all(part in note for part in parts) for note in found["notes"]), f"{parts} in no note: {found['notes']}")

    def test_page_has_every_note(self):
        page = subprocess.run([ATHANOR, "doctor"], capture_output=True, text=True, check=True).stdout
        notes = [line.removeprefix("note: ") for line in page.splitlines() if line.startswith("note: ")]
        self.assertEqual(notes, doctor()[0]["notes"])
        self.assertEqual("ok: nothing stands in the way" in page, not notes)

    def test_own_name(self):
        if os.environ.get("ATHANOR_SANITIZE") or not shutil.which("cc") or "own name" not in doctor()[0]["ranks"]:
            self.skipTest("names cannot be made slow here")
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "name.c").write_text(NAME)
            subprocess.run(["cc", "-shared", "-fPIC", "-o", f"{folder}/name.so", f"{folder}/name.c"], check=True)
            for seconds, known, slow, said in ((0, 1, False, "found in"), (0, 0, False, "not found in"), (1.2, 1, True, "found in"),
                                               (1.2, 0, True, "not found in"), (50, 1, True, "not found in")):
                with self.subTest(seconds=seconds, known=known):
                    found, took = doctor(LD_PRELOAD=f"{folder}/name.so", NAME_SECONDS=str(seconds), NAME_FOUND=str(known))
                    self.assertLess(took, 10)
                    self.assertTrue(found["ranks"]["own name"].startswith(f"furnace: {said} "), found["ranks"]["own name"])
                    if slow:
                        self.note(found, "own name", "echo '127.0.1.1 furnace' >> /etc/hosts")
                    else:
                        self.assertFalse([note for note in found["notes"] if "own name" in note])

    def test_root(self):
        if os.geteuid() != 0 or "Open MPI" not in doctor()[0]["ranks"]["MPI"]:
            self.skipTest("for root with Open MPI")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OMPI_")}
        done = subprocess.run([ATHANOR, "doctor"], capture_output=True, text=True, env=environment, check=True)
        self.assertIn("note: root may use Open MPI's mpirun only with OMPI_ALLOW_RUN_AS_ROOT=1", done.stdout)

    def test_no_launcher(self):
        found, _ = doctor(PATH="/nowhere")
        if found["ranks"]["MPI"] != "not built":
            self.note(found, "neither mpirun nor srun is found", "install openmpi-bin")

    def test_open_files(self):
        self.note(doctor("sh", "-c", 'ulimit -n 100; exec "$@"', "sh")[0], "few files may be open at once", "ulimit -n")

    def test_small_places(self):
        """In a namespace of its own: no room in /dev/shm, on the disk."""
        if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0:
            self.skipTest("this user may not mount")
        mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && cd "$0" && exec "$@"']
        found, _ = doctor(*mounted, "/dev/shm")
        if found["ranks"]["MPI"] != "not built":
            self.note(found, "/dev/shm has room for", "--shm-size=")
        self.note(doctor(*mounted, "/mnt")[0], "less than 2 GiB are free on this disk")


if __name__ == "__main__":
    unittest.main()
