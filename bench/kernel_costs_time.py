"""How long a block's walks take on one quarter of a Hopper multiprocessor: derived from published numbers, measured nowhere here.

A multiprocessor has four quarters, each with a scheduler that issues one instruction a cycle, and a warpgroup has a warp in each;
so one quarter, with one warp of each warpgroup that was walked, stands for all four. A warp issues in order: an instruction waits
for the scoreboards that it names, then for its pipe; the next follows after the stall that the compiler wrote. What it costs:

    slots       one of the scheduler's a warp instruction: warps of two consumers that are busy at once take turns
    pipes       cycles a warp instruction of a quarter: FFMA, FADD, FMUL 1; integers, comparisons, selections and conversions 2;
                MUFU 8 (16 lanes a clock of a multiprocessor)                                        CUDA C Programming Guide
    tensor      wgmma 64 x N x 16: N / 2 cycles, and no faster than shared memory gives its operands
    shared      128 bytes a clock of a multiprocessor: 64 x 16 of A (unless in registers) and N x 16 of B a wgmma, beside loads and
                stores
    L2          38 bytes a clock each multiprocessor (46 is the most seen; a hand-written kernel of 704 TFLOP/s shows 38)
    latencies   LATENCY below, from microbenchmarks that others published (Luo et al. 2024, "Benchmarking and dissecting the Nvidia
                Hopper GPU architecture"; Jia et al. 2018) or judged from them

What it leaves out: misses of the instruction cache, bank conflicts, waits of blocks for each other, contention in L2 and memory
beyond the rate above.

Clocks: a card with busy tensor cores runs into its power limit. cuBLAS at 8192^3 gives 798 TFLOP/s on an H100: with tensor cores
97% busy that is 1.52 GHz of the 1.755 GHz that it runs at when little is going on. Between, power goes with the cube of the clock
times (0.35 + 0.65 busy): an assumption.
"""
import heapq

CLOCK, BUSY_CLOCK, IDLE_SHARE = 1.755e9, 1.50e9, 0.35
MULTIPROCESSORS, TENSOR_RATE = 132, 4096  # tensor: floating-point operations a cycle of one multiprocessor
L2_RATE, SHARED_RATE, A_BYTES = 38.0, 128.0, 16384

LATENCY = {"LDS": 29, "LDSM": 33, "LDL": 33, "STL": 33, "LDG": 280, "LD": 280, "ATOMG": 700, "ATOM": 700, "MUFU": 22, "SHFL": 24,
           "S2R": 20, "S2UR": 25, "LDC": 30, "ULDC": 20, "R2UR": 12, "SYNCS": 20, "STS": 20, "STSM": 25, "STG": 20, "F2F": 20,
           "F2I": 20, "I2F": 20, "VOTEU": 12, "REDG": 20, "UTMALDG": 30, "UTMASTG": 30, "UTMAREDG": 30, "UBLKCP": 30, "UBLKRED": 30}
OTHER_LATENCY = 20
FENCE = {"CTA": 30, "GPU": 700, "SYS": 1000, "VIEW": 20}
TMA_LOAD, TMA_STORE_READ, BARRIER, TENSOR_END = 550, 400, 20, 30

ALU = {"IADD3", "LOP3", "ISETP", "SHF", "SEL", "LEA", "PRMT", "IABS", "VIMNMX", "IMNMX", "VIADDMNMX", "FSEL", "FSETP", "FMNMX", "PLOP3",
       "P2R", "R2P", "F2FP", "VIADD", "FSET", "MOV", "I2FP", "BREV", "POPC", "FLO"}
HEAVY = {"IMAD"}
SLOW = {"MUFU": 8, "F2F": 8, "F2I": 8, "I2F": 8, "POPC": 8, "FRND": 8, "DFMA": 2, "DADD": 2, "DMUL": 2}


def wgmma_shape(instruction):
    """N of 64 x N x 16, and whether A lies in registers."""
    n = int(instruction.name.split(".")[1].split("x")[1])
    return n, not instruction.operands[1].startswith("gdesc")


def store_words(name):
    return 4 if "128" in name or ".88.4" in name else 2 if ".64" in name or ".88.2" in name else 1


def plan(code):
    """What the clock needs of each instruction: (kind, stall, wait, result, read, cycles of a pipe, number of the pipe, latency)."""
    plans = []
    for i in code:
        base, kind, pipe, cycles, latency = i.base, 0, 0, 0, 0
        if base in ALU or base == "HADD2" or base == "CS2R":
            pipe, cycles = 1, 2
        elif base in HEAVY:
            pipe, cycles = 2, 2
        elif base in SLOW:
            pipe, cycles = 3, SLOW[base]
        elif base in ("LDS", "STS", "LDSM", "STSM"):
            kind, cycles = 4, max(1.0, store_words(i.name) * 128 * 4 / SHARED_RATE)
        elif base == "HGMMA":
            n, registers = wgmma_shape(i)
            kind, cycles = 5, max(n / 2, (n * 32 + (0 if registers else 2048)) / SHARED_RATE)
            latency = "gsb0" in i.text
        elif base == "WARPGROUP" and "DEPBAR" in i.name:
            kind, latency = 6, int(i.operands[-1], 0)
        elif base == "DEPBAR":
            kind, latency = 7, int(i.operands[-1], 0)
        elif base == "UTMACMDFLUSH":
            kind = 8
        elif base in ("MEMBAR", "FENCE"):
            kind, latency = 9, FENCE[next((k for k in FENCE if k in i.name), "CTA")]
        elif base in ("SYNCS", "BAR", "UTMALDG", "UBLKCP"):
            kind = 10
        elif base == "NANOSLEEP":
            kind = 0
        if kind in (0, 4, 10) and base != "BAR":
            latency = LATENCY.get(base, OTHER_LATENCY)
        plans.append((kind, max(1, i.stall), i.wait, i.result, i.read, cycles, pipe, latency))
    return plans


class Role:
    """A walk as the clock follows it."""

    def __init__(self, walk, number, quarter):
        self.walk, self.number, self.quarter, self.at, self.ready = walk, number, quarter, 0, 0.0
        self.boards = [0.0] * 8
        self.groups, self.stores, self.done = [], [], 0.0
        self.counts, self.announced = {}, {}
        self.multicast = any(event[0] == "load" and event[2] for event in walk.events.values())


class Clock:
    """Follows walks through a block until they end, or until the consumer has made `most` instructions."""

    def __init__(self, code, walks, consumers, most=None):
        self.plans = plan(code)
        self.roles = [Role(w, n, 0 if t in consumers else 1 + n) for n, (t, w) in enumerate(walks.items())]
        self.slot = [0.0] * (len(self.roles) + 2)
        self.pipes = [[0.0] * 4 for _ in range(len(self.roles) + 2)]
        self.shared = self.tensor = self.l2 = 0.0
        self.tensor_busy, self.multiplied = 0.0, 0
        self.most = most
        self.arrived, self.filled, self.members = {}, {}, {}
        self.waiting, self.ends = {}, {}
        self.marks = []  # (time at which it is issued, place in the trace) of the first consumer's wgmmas
        self.first = next((r for r in self.roles if r.quarter == 0), self.roles[0])
        for role in self.roles:
            for event in role.walk.events.values():
                if event[0] in ("arrive", "sync", "meet"):
                    key = event[1] if event[0] == "arrive" else ("bar", event[1])
                    self.members.setdefault(key, set()).add(role)
        self.run()

    def phase_end(self, key, k):
        """When the k-th phase of a barrier is over; None: not known yet."""
        if k < 0:
            return 0.0
        last = 0.0
        for role in self.members.get(key, ()):
            times = self.arrived.get((key, role), [])
            if len(times) > k:
                last = max(last, times[k])
            elif role.at < len(role.walk.trace):
                return None
        return max(last, self.filled.get((key, k), 0.0))

    def wake(self, key, heap, t):
        for role in self.waiting.pop(key, []):
            role.ready = max(role.ready, t)
            heapq.heappush(heap, (role.ready, role.number, role))

    def run(self):
        heap = [(0.0, r.number, r) for r in self.roles]
        heapq.heapify(heap)
        stopped = False
        while heap and not stopped:
            _, _, role = heapq.heappop(heap)
            trace, events, plans = role.walk.trace, role.walk.events, self.plans
            horizon = heap[0][0] if heap else float("inf")
            while True:
                if role.at >= len(trace):
                    self.ends[role.walk.thread] = max(role.ready, role.done)
                    for key in [k for k, waiting in self.waiting.items() if waiting]:
                        self.wake(key, heap, role.ready)
                    break
                kind, stall, wait, result, read, cycles, pipe, latency = plans[trace[role.at]]
                t = role.ready
                if wait:
                    boards = role.boards
                    for n in range(6):
                        if wait >> n & 1 and boards[n] > t:
                            t = boards[n]
                if pipe:
                    t = max(t, self.pipes[role.quarter][pipe])
                t = max(t, self.slot[role.quarter])
                if t > horizon + 0.5:  # others first
                    role.ready = t
                    heapq.heappush(heap, (t, role.number, role))
                    break
                event = events.get(role.at)
                if event is not None:
                    after = self.meet(role, event, t, heap)
                    if after is None:  # waits for someone
                        key = event[1] if event[0] == "wait" else ("bar", event[1])
                        role.ready = t
                        self.waiting.setdefault(key, []).append(role)
                        break
                    horizon = heap[0][0] if heap else float("inf")
                else:
                    after = t
                finished = after + latency
                if pipe:
                    self.pipes[role.quarter][pipe] = t + cycles
                    finished += cycles - 1
                elif kind == 4:
                    start = max(t, self.shared)
                    self.shared = start + cycles
                    finished = start + cycles + latency
                elif kind == 5:
                    start = max(t, self.tensor)
                    end = start + cycles
                    self.tensor_busy += cycles
                    self.tensor = end
                    self.multiplied += 1 if role is self.first else 0
                    if role is self.first:
                        self.marks.append((t, role.at))
                    role.done = end
                    if latency:
                        role.groups.append(end + TENSOR_END)
                elif kind == 6:
                    left = role.groups[:-latency] if latency else role.groups
                    after = max([t, *left])
                    role.groups = role.groups[-latency:] if latency else []
                elif kind == 7:
                    left = role.stores[:-latency] if latency else role.stores
                    after = max([t, *left])
                    role.stores = role.stores[-latency:] if latency else []
                elif kind == 8:
                    role.stores.append(t + TMA_STORE_READ)
                elif kind == 9:
                    after = t + latency
                if result < 6:
                    role.boards[result] = max(finished, role.boards[result])
                if read < 6:
                    role.boards[read] = max(role.boards[read], t + 12, (t + cycles) if kind == 5 else 0)
                self.slot[role.quarter] = t + 1
                role.ready = max(after, t) + stall
                role.at += 1
                if self.most is not None and role is self.first and role.at >= self.most:
                    stopped = True
                    break
        self.time = max([r.ready for r in self.roles if r.quarter == 0] or [r.ready for r in self.roles])
        self.stuck = not stopped and any(r.at < len(r.walk.trace) for r in self.roles)

    def meet(self, role, event, t, heap):
        """What an instruction at a barrier comes to: the time behind it, or None where that depends on others."""
        kind, where = event[0], event[1]
        if kind == "wait":
            end = self.phase_end(where, event[2])
            return None if end is None else max(t, end)
        if kind == "load":
            # Bytes are charged when the arrival announced them; the last copy's latency counts.
            k = len(self.arrived.get((where, role), [])) - 1
            total = role.announced.pop(where, 0)
            if role.multicast:  # of B, which goes to both blocks of a cluster, each loads a half
                total -= max(0, total - A_BYTES) / 2
            if total:
                self.l2 = max(self.l2, t) + total / L2_RATE
            previous = self.filled.get((where, k), 0.0)
            self.filled[where, k] = max(previous, self.l2 + TMA_LOAD, t + TMA_LOAD)
            if self.waiting.get(where):
                self.wake(where, heap, t)
            return t
        if kind == "arrive":
            self.arrived.setdefault((where, role), []).append(t)
            if event[2]:
                role.announced[where] = event[2] & 0xFFFFF
                k = len(self.arrived[where, role]) - 1
                self.filled[where, k] = t + TMA_LOAD  # until the copies say more
            self.wake(where, heap, t)
            return t
        key = ("bar", where)
        times = self.arrived.setdefault((key, role), [])
        k = role.counts.get((key, "at"))
        if k is None:
            times.append(t)
            k = len(times) - 1
            self.wake(key, heap, t)
        if kind == "meet":
            return t
        role.counts[key, "at"] = k
        end = self.phase_end(key, k)
        if end is None:
            return None
        role.counts[key, "at"] = None
        return max(t, end) + BARRIER


def clock_rate(busy):
    """Cycles a second where tensor cores are busy for that share of the time."""
    return min(CLOCK, BUSY_CLOCK * (1 / (IDLE_SHARE + (1 - IDLE_SHARE) * min(busy, 1))) ** (1 / 3))
