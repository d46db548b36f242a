// What must be the same on all ranks: any fact, of any rank, and every key of a configuration that is not of a host.
#include "parallel/same.h"
#include "tests/support/check.h"
#include "train/trainer_state.h"

#include <stdio.h>

static Comm *world;

// Rank 0 is told `expected`, the others that it was.
static void check_told(Error *error, const char *expected) {
    if (world->size == 1) {
        CHECK_OK(error);
    } else if (world->rank == 0) {
        CHECK_FAILS(error, expected);
    } else {
        CHECK(error != NULL && error->message[0] == 0 && world->agreed);
        error_free(error);
    }
}

static Error *compare(const char *text) {
    Buffer facts = {0};
    for (const char *line = text; *line; line += strcspn(line, " "), line += *line == ' ') {
        int size = (int)strcspn(line, " "), name = (int)strcspn(line, ":");
        char *key = memory_format("%.*s", name, line);
        same_add(&facts, key, "%.*s", size - name - 1, line + name + 1);
        free(key);
    }
    Error *error = same_on_all(world, &facts);
    buffer_free(&facts);
    return error;
}

static void test_facts(void) {
    CHECK_OK(compare("a:1 b:2"));
    for (int odd = 0; odd < world->size; odd++) {
        bool other = world->rank == odd;
        // Who differs from rank 0; of rank 0 itself it is not known who is right.
        char on[64] = "", told[160];
        int first = odd == 0 ? 1 : odd, last = odd == 0 ? world->size - 1 : odd;
        for (int r = first; r <= last; r++) {
            snprintf(on + strlen(on), sizeof on - strlen(on), "%s%d", r > first ? ", " : last > first ? "ranks " : "rank ", r);
        }
        int zeros = odd == 0 ? 3 : 2;
        snprintf(told, sizeof told, "b is %d on rank 0 but not on %s (%d); start all", zeros, on, 5 - zeros);
        check_told(compare(other ? "a:1 b:3 c:4" : "a:1 b:2 c:4"), told);
        // One that a rank has alone, or lacks.
        snprintf(told, sizeof told, "c is 9 on rank %d but not on rank", odd);
        check_told(compare(other ? "a:1 c:9" : "a:1"), told);
        snprintf(told, sizeof told, "c is 9 on rank %d but not on rank", odd == 0);
        check_told(compare(other ? "a:1" : "a:1 c:9"), told);
        check_told(compare(other ? "a:1 d:5 e:6 f:7 g:8" : "a:1 d:6 e:7 f:8 g:9"), "; and 1 more");
    }
    // A value does not end early, nor the line.
    check_told(compare(world->rank == world->size - 1 ? "a:1\n2" : "a:1?3"), "a is 1?3 on rank 0");
    CHECK_OK(compare("a:1 b:2"));
}

// A value of the key that is not the one it has.
static void change(const Key *key, RunConfig *config) {
    void *at = (char *)config + key->offset;
    switch (key->type) {
    case KEY_BOOL:
        *(bool *)at ^= true;
        break;
    case KEY_INT:
        *(int64_t *)at += 1;
        break;
    case KEY_FLOAT:  // the next number but for its last bits
        *(double *)at = *(double *)at * (1 + 1e-15) + 1e-300;
        break;
    case KEY_CHOICE:
        *(int *)at = *(int *)at == 0;
        break;
    case KEY_TEXT:
    case KEY_PATH:
        CHECK_OK(key_parse(key, config, "other", "test"));
        break;
    case KEY_LIST:
        CHECK_OK(key_parse(key, config, "", "test"));
        break;
    case KEY_PROPORTIONS:
        CHECK_OK(key_add_proportion(key, config, "set", key->least != 0 || key->most != 0 ? key->least : 1, "test"));
        break;
    }
}

static void test_keys(void) {
    int count, own = 0;
    const Key *keys = run_config_keys(&count);
    for (int i = 0; i < count; i++) {
        RunConfig config = {0};
        keys_defaults(keys, count, &config);
        CHECK_OK(trainer_compare_given(&config, world));
        if (world->rank == world->size - 1) {
            change(&keys[i], &config);
        }
        Error *error = trainer_compare_given(&config, world);
        char told[128];
        snprintf(told, sizeof told, "the ranks are not of one run: %s is ", keys[i].name);
        if (keys[i].per_rank) {
            own++;
            CHECK_OK(error);
        } else {
            check_told(error, told);
        }
        keys_free(keys, count, &config);
    }
    CHECK_I64(own, 2);
}

int main(void) {
    CHECK_OK(comm_open_world(&world));
    RUN(test_facts);
    RUN(test_keys);
    int failed = check_report();
    comm_close(world);
    return failed;
}
