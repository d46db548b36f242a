// athanor doctor: what this build has, what this machine offers, and what stands in the way.
//
// Facts are gathered in one list of (section, name, value), notes in another; both are then printed as a page or as JSON.
#include "core/clock.h"
#include "core/json.h"
#include "core/text.h"
#include "core/threads.h"
#include "core/version.h"
#include "kernels/device.h"
#include "launch/commands.h"
#include "parallel/group.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <hdf5.h>
#include <jansson.h>
#include <netdb.h>
#include <pcre2.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utf8proc.h>
#include <xxhash.h>
#include <yaml.h>
#include <zlib.h>
#include <zstd.h>

#define AS_TEXT_(value) #value
#define AS_TEXT(value) AS_TEXT_(value)

typedef struct Fact {
    const char *section;
    char *name, *value;
} Fact;

typedef struct Findings {
    Fact *facts;
    size_t fact_count, fact_capacity;
    Strings notes;
} Findings;

static void PRINTF_LIKE(4, 5) fact(Findings *all, const char *section, const char *name, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    array_push(all->facts, all->fact_count, all->fact_capacity, ((Fact){section, memory_string(name), memory_string(text)}));
}

// ---- The machine

// The value of the first line "key : value" of /proc/cpuinfo, or the machine's architecture.
static void processor_name(char *out, size_t size) {
    struct utsname system;
    snprintf(out, size, "%s", uname(&system) == 0 ? system.machine : "unknown");
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *value = strchr(line, ':');
        if (value != NULL && text_starts_with(line, "model name")) {
            snprintf(out, size, "%.*s", (int)strcspn(value + 2, "\n"), value + 2);
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

static void find_processor(Findings *all) {
    char name[256];
    processor_name(name, sizeof name);
    fact(all, "processor", "model", "%s", name);
    fact(all, "processor", "cores", "%d usable of %ld", threads_available(), sysconf(_SC_NPROCESSORS_ONLN));
    const char *const *variants = device_cpu_variants();
    Buffer others = {0};
    for (int i = 1; variants[i] != NULL; i++) {
        buffer_printf(&others, "%s%s", i > 1 ? ", " : "", variants[i]);
    }
    fact(all, "processor", "kernels", others.size > 0 ? "%s (also runs: %s)" : "%s", variants[0], others.data);
    buffer_free(&others);
#if defined(__x86_64__)
    if (strcmp(variants[0], "baseline") == 0) {
        strings_add(&all->notes, "this processor has no AVX2: training runs on the slow baseline kernels");
    }
#endif
}

static void find_memory(Findings *all) {
    char total[32], left[32], line[128] = "";
    struct sysinfo info;
    if (sysinfo(&info) == 0) {
        fact(all, "memory", "total", "%s", text_bytes(total, (double)info.totalram * info.mem_unit));
    }
    size_t available = memory_available();
    fact(all, "memory", "available", "%s", text_bytes(left, (double)available));
    if (available < (size_t)1 << 30) {
        strings_add(&all->notes, "less than 1 GiB of memory is available: choose a small model, or close other programs");
    }
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    const char *chosen = file != NULL && fgets(line, sizeof line, file) != NULL ? strchr(line, '[') : NULL;
    if (chosen != NULL) {
        fact(all, "memory", "huge pages", "%.*s", (int)strcspn(chosen + 1, "]"), chosen + 1);
        if (text_starts_with(chosen, "[never]")) {
            strings_add(&all->notes, "transparent huge pages are off, so tensors lie in 4 KiB pages: echo madvise > "
                                     "/sys/kernel/mm/transparent_hugepage/enabled, as root");
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

static void find_disk(Findings *all) {
    char folder[4096], left[32], total[32];
    struct statvfs disk;
    if (getcwd(folder, sizeof folder) == NULL || statvfs(".", &disk) != 0) {
        return;
    }
    double free_bytes = (double)disk.f_bavail * (double)disk.f_frsize;
    fact(all, "disk", "this folder", "%.300s", folder);
    fact(all, "disk", "free", "%s of %s", text_bytes(left, free_bytes),
         text_bytes(total, (double)disk.f_blocks * (double)disk.f_frsize));
    if (free_bytes < 2.0 * (1 << 30)) {
        strings_add(&all->notes, "less than 2 GiB are free on this disk: checkpoints take 12 bytes a parameter each");
    }
    if (access(".", W_OK) != 0) {
        strings_add(&all->notes, "this folder cannot be written to: give runs a folder elsewhere (folder=...)");
    }
}

static const char *limit_text(char *out, int resource, bool bytes) {
    struct rlimit limit;
    if (getrlimit(resource, &limit) != 0) {
        return "unknown";
    }
    if (limit.rlim_cur == RLIM_INFINITY) {
        return "unlimited";
    }
    return bytes ? text_bytes(out, (double)limit.rlim_cur) : text_count(out, (double)limit.rlim_cur);
}

static void find_limits(Findings *all) {
    char text[32];
    struct rlimit files;
    fact(all, "limits", "open files", "%s", limit_text(text, RLIMIT_NOFILE, false));
    fact(all, "limits", "locked memory", "%s", limit_text(text, RLIMIT_MEMLOCK, true));
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < 512) {
        strings_add(&all->notes, "few files may be open at once: raise it with ulimit -n 4096");
    }
}

// ---- The build

static bool in_path(const char *program) {
    const char *path = getenv("PATH");
    while (path != NULL && *path != 0) {
        size_t size = strcspn(path, ":");
        char *file = memory_format("%.*s/%s", (int)size, path, program);
        bool found = access(file, X_OK) == 0;
        free(file);
        if (found) {
            return true;
        }
        path += size + (path[size] == ':');
    }
    return false;
}

// Looks the own host name up as MPI does when a rank starts, in a process of its own that is ended after NAME_BOUND_MS. The
// seconds that it took; *found is whether there was an answer, and a name.
#define NAME_BOUND_MS 3000
#define NAME_SLOW_SECONDS 1.0
static double look_up(const char *name, bool *found) {
    double began = clock_seconds();
    int status = 0;
    pid_t done = 0, child = fork();
    if (child == 0) {
        struct addrinfo *answer;
        _exit(getaddrinfo(name, NULL, NULL, &answer) == 0 ? 0 : 1);
    }
    while (child > 0 && done == 0 && clock_seconds() - began < NAME_BOUND_MS / 1e3) {
        done = waitpid(child, &status, WNOHANG);
        usleep(done == 0 ? 1000 : 0);
    }
    double seconds = clock_seconds() - began;
    if (child > 0 && done == 0) {
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
    *found = done == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    return seconds;
}

static void find_name(Findings *all) {
    char name[256] = "";
    bool found;
    if (gethostname(name, sizeof name - 1) != 0) {
        return;
    }
    double seconds = look_up(name, &found);
    fact(all, "ranks", "own name", "%s: %s %.0f ms", name, found ? "found in" : "not found in", seconds * 1e3);
    if (seconds >= NAME_SLOW_SECONDS) {
        char *note =
            memory_format("this host looks for its own name (%s) for %s%.0f s, which every start of MPI waits for, without a "
                          "word: as root, echo '127.0.1.1 %s' >> /etc/hosts",
                          name, found ? "" : "more than ", seconds, name);
        strings_add(&all->notes, note);
        free(note);
    }
}

// Open MPI gives each rank a file of 4 MiB in /dev/shm; containers often have 64 MiB there.
static void find_shared_memory(Findings *all) {
    char left[32];
    struct statvfs shared;
    if (statvfs("/dev/shm", &shared) != 0) {
        return;
    }
    double room = (double)shared.f_bavail * (double)shared.f_frsize;
    int ranks = (int)(room / (5 << 20));
    fact(all, "ranks", "/dev/shm", "%s free", text_bytes(left, room));
    if (ranks < threads_available()) {
        int enough = 64 + 5 * threads_available();
        char *note =
            memory_format("/dev/shm has room for what %d of %d ranks share, and the others will be slow: start the container "
                          "with --shm-size=%dm, or as root mount -o remount,size=%dm /dev/shm",
                          ranks, threads_available(), enough, enough);
        strings_add(&all->notes, note);
        free(note);
    }
}

static void find_ranks(Findings *all) {
    bool mpi = strcmp(comm_library(), "none") != 0;
    fact(all, "ranks", "MPI", "%s", mpi ? comm_library() : "not built");
    fact(all, "ranks", "started by", "%s", comm_started_by_launcher() ? "an MPI launcher" : "hand: one rank");
    fact(all, "ranks", "NCCL", "%s", group_nccl_version());
    if (!mpi) {
        strings_add(&all->notes, "built without MPI, so one rank only: install libopenmpi-dev openmpi-bin and build again");
    } else if (!in_path("mpirun") && !in_path("srun")) {
        strings_add(&all->notes, "neither mpirun nor srun is found, so one rank only: install openmpi-bin");
    } else if (geteuid() == 0 && getenv("OMPI_ALLOW_RUN_AS_ROOT") == NULL && !comm_started_by_launcher() &&
               strstr(comm_library(), "Open MPI") != NULL) {
        strings_add(&all->notes, "root may use Open MPI's mpirun only with OMPI_ALLOW_RUN_AS_ROOT=1 and "
                                 "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 in the environment, or with --allow-run-as-root behind it");
    }
    if (mpi) {
        find_name(all);
        find_shared_memory(all);
    }
}

// ---- Cards

static void version_text(char out[16], int version) {
    snprintf(out, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

static void find_cards(Findings *all) {
    if (!device_built(DEVICE_CUDA)) {
        fact(all, "cards", "CUDA", "not built");
        if (access("/dev/nvidia0", F_OK) == 0) {
            strings_add(&all->notes,
                        "this host has an NVIDIA card, but this build has no CUDA: install the CUDA toolkit (nvcc), "
                        "then configure and build again");
        }
        return;
    }
    DeviceDescription cards;
    Error *error = device_describe_cards(DEVICE_CUDA, &cards);
    if (error != NULL) {
        fact(all, "cards", "CUDA", "built, but not usable: %s", error->message);
        if (access("/dev/nvidia0", F_OK) == 0) {
            strings_add(&all->notes, error->message);
        }
        error_free(error);
        return;
    }
    char runtime[16], driver[16];
    version_text(runtime, cards.runtime);
    version_text(driver, cards.driver);
    fact(all, "cards", "CUDA", "runtime %s, driver for %s", runtime, driver);
    for (int i = 0; i < cards.cards; i++) {
        const DeviceCard *card = &cards.card[i];
        char name[16], left[32], memory[32];
        snprintf(name, sizeof name, "card %d", i);
        fact(all, "cards", name, "%s, sm_%d, %d multiprocessors, %s of %s free", card->name, card->architecture,
             card->multiprocessors, text_bytes(left, (double)card->available), text_bytes(memory, (double)card->memory));
        snprintf(name, sizeof name, "kernels of %d", i);
        fact(all, "cards", name, "%s", card->bodies);
        if (!card->usable) {
            strings_add(&all->notes, "a card here is older than sm_80 and cannot be used: choose another with card=N");
        }
    }
    fact(all, "cards", "products",
         "auto: ours or cuBLASLt by trial for each shape (kernels.txt in a run's folder tells); "
         "products=ours, cublas or sm80 forces one");
}

static void library(Findings *all, const char *name, const char *built, const char *running) {
    bool same = strcmp(built, running) == 0;
    fact(all, "libraries", name, same ? "%s" : "%s, built with %s", running, built);
    if (!same && strcmp(name, "HDF5") == 0) {
        strings_add(&all->notes, "HDF5 differs from the one athanor was built with, and it refuses to work then: build again");
    }
}

static void find_libraries(Findings *all) {
    unsigned major, minor, release;
    char running[64], built[64], pcre[64];
    H5get_libversion(&major, &minor, &release);
    snprintf(running, sizeof running, "%u.%u.%u", major, minor, release);
    snprintf(built, sizeof built, "%d.%d.%d", H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE);
    library(all, "HDF5", built, running);
    library(all, "zstd", ZSTD_VERSION_STRING, ZSTD_versionString());
    library(all, "zlib", ZLIB_VERSION, zlibVersion());
    library(all, "libyaml", yaml_get_version_string(), yaml_get_version_string());
    library(all, "jansson", JANSSON_VERSION, jansson_version_str());
    unsigned hash = XXH_versionNumber();
    snprintf(running, sizeof running, "%u.%u.%u", hash / 10000, hash / 100 % 100, hash % 100);
    snprintf(built, sizeof built, "%d.%d.%d", XXH_VERSION_MAJOR, XXH_VERSION_MINOR, XXH_VERSION_RELEASE);
    library(all, "xxHash", built, running);
    pcre2_config(PCRE2_CONFIG_VERSION, pcre);
    pcre[strcspn(pcre, " ")] = 0;
    library(all, "PCRE2", AS_TEXT(PCRE2_MAJOR) "." AS_TEXT(PCRE2_MINOR), pcre);
    snprintf(built, sizeof built, "%d.%d.%d", UTF8PROC_VERSION_MAJOR, UTF8PROC_VERSION_MINOR, UTF8PROC_VERSION_PATCH);
    library(all, "utf8proc", built, utf8proc_version());
}

static void find_build(Findings *all) {
    fact(all, "build", "version", "%s", ATHANOR_VERSION);
    fact(all, "build", "commit", "%s", ATHANOR_COMMIT);
    fact(all, "build", "compiler", "%s", ATHANOR_COMPILER);
    fact(all, "build", "type", "%s", ATHANOR_BUILD_TYPE);
    if (strcmp(ATHANOR_BUILD_TYPE, "Release") != 0) {
        strings_add(&all->notes, "this build is not optimised: use the preset 'release' to train");
    }
}

// ---- Output

static void print_page(const Findings *all) {
    const char *section = "";
    for (size_t i = 0; i < all->fact_count; i++) {
        const Fact *one = &all->facts[i];
        if (strcmp(section, one->section) != 0) {
            printf("%s%s\n", i > 0 ? "\n" : "", one->section);
            section = one->section;
        }
        printf("  %-15s %s\n", one->name, one->value);
    }
    printf("\n");
    for (size_t i = 0; i < all->notes.count; i++) {
        printf("note: %s\n", all->notes.items[i]);
    }
    if (all->notes.count == 0) {
        printf("ok: nothing stands in the way\n");
    }
}

static void print_json(const Findings *all) {
    json_t *document = json_object(), *notes = json_array();
    for (size_t i = 0; i < all->fact_count; i++) {
        const Fact *one = &all->facts[i];
        json_t *section = json_object_get(document, one->section);
        if (section == NULL) {
            section = json_object();
            json_object_set_new(document, one->section, section);
        }
        json_object_set_new(section, one->name, json_string(one->value));
    }
    for (size_t i = 0; i < all->notes.count; i++) {
        json_array_append_new(notes, json_string(all->notes.items[i]));
    }
    json_object_set_new(document, "notes", notes);
    char *text = json_dumps(document, JSON_INDENT(2));
    printf("%s\n", text);
    free(text);
    json_decref(document);
}

typedef struct Options {
    bool json;
} Options;

static const Key flags[] = {
    {"json", KEY_BOOL, offsetof(Options, json), "false", .help = "Print an object for programs instead of a page."},
};

static Error *run(const void *options, int count, char **arguments) {
    Findings all = {0};
    find_build(&all);
    find_processor(&all);
    find_memory(&all);
    find_disk(&all);
    find_limits(&all);
    find_cards(&all);
    find_ranks(&all);
    find_libraries(&all);
    (((const Options *)options)->json ? print_json : print_page)(&all);
    for (size_t i = 0; i < all.fact_count; i++) {
        free(all.facts[i].name);
        free(all.facts[i].value);
    }
    free(all.facts);
    strings_free(&all.notes);
    return NULL;
}

const Command command_doctor = {
    .name = "doctor",
    .arguments = "",
    .summary = "tell what this build has and what this machine offers",
    .details = "Every line that needs attention is repeated as a note at the end.",
    .example = "  athanor doctor\n  athanor doctor --json",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .run = run,
};
