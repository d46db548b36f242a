// Checkpoints: any layout reads any checkpoint, damage is named and skipped, hostile files are refused.
#include "core/durable.h"
#include "core/hash.h"
#include "tests/support/check.h"
#include "tests/support/checkpoints.h"
#include "train/checkpoint/folder.h"
#include "train/checkpoint/manifest.h"

#define H5_USE_110_API
#include <hdf5.h>
#include <stdio.h>
#include <unistd.h>

static char *step_path(const char *run, int64_t step) {
    char *folder = store_folder(run), *path = store_step(folder, step);
    free(folder);
    return path;
}

// Saves these steps (ended by -1) with a fresh set of writers.
static void save_steps(const char *run, int ranks, int kinds, const int64_t *steps) {
    Toy toy;
    if (CHECK_OK(toy_open(&toy, run, ranks, kinds, 3, 0))) {
        for (; *steps >= 0; steps++) {
            CHECK(toy_save(&toy, *steps) == CHECKPOINT_COMMITTED);
        }
    }
    toy_close(&toy);
}

static int64_t found_step(const char *run, Strings *skipped) {
    char *path;
    Error *error = checkpoint_find(run, &path, skipped);
    if (error != NULL) {
        int kind = error->kind == ERROR_MISSING ? -1 : -2;
        error_free(error);
        return kind;
    }
    int64_t step = strtoll(strrchr(path, '-') + 1, NULL, 10);
    free(path);
    return step;
}

static void test_layouts(void) {
    static const int ranks[] = {1, 2, 3, 8};
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        for (int kinds = 1; kinds <= 3; kinds++) {
            const char *run = check_folder();
            save_steps(run, ranks[i], kinds, (int64_t[]){0, 123456789, -1});
            char *path = step_path(run, 123456789);
            for (int parts = 1; parts <= 7; parts += 2) {
                CHECK(toy_matches(path, kinds, parts));
            }
            Checkpoint *c;
            CHECK_OK(checkpoint_open(path, false, &c));
            CHECK_I64(checkpoint_info(c)->ranks, ranks[i]);
            CHECK(checkpoint_has(c, "head", SLICE_WEIGHT) && checkpoint_has(c, "head", SLICE_MOMENT2) == (kinds == 3));
            CHECK(!checkpoint_has(c, "tail", SLICE_WEIGHT) && checkpoint_tensor(c, "tail") == -1);
            float x;
            CHECK_FAILS(checkpoint_read(c, "tail", SLICE_WEIGHT, 0, 1, &x), "has no tensor tail");
            CHECK_FAILS(checkpoint_read(c, "head", SLICE_WEIGHT, 1000, 1001, &x), "has 1000 elements");
            if (kinds < 3) {
                CHECK_FAILS(checkpoint_read(c, "head", SLICE_MOMENT2, 7, 8, &x), "element 7 of moment2 head is not there");
            }
            Buffer bytes = {0};
            CHECK_FAILS(checkpoint_blob(c, "rank-00000.h5", &bytes), "has no rank-00000.h5");
            CHECK_FAILS(checkpoint_blob(c, "nothing", &bytes), "has no nothing");
            checkpoint_close(c);
            // Nothing of the work is left in the folder.
            Strings names = {0};
            CHECK_OK(folder_list(path, &names));
            CHECK_I64(names.count, ranks[i] + 2);
            strings_free(&names);
            free(path);
        }
    }
}

static void test_find(void) {
    const char *run = check_folder();
    char *path;
    CHECK_I64(found_step(run, NULL), -1);
    CHECK_FAILS(checkpoint_find(run, &path, NULL), "holds no checkpoint");
    save_steps(run, 2, 3, (int64_t[]){5, 10, -1});
    CHECK_I64(found_step(run, NULL), 10);
    // A checkpoint's own folder is found too; what did not commit is not.
    char *five = step_path(run, 5), *partial = memory_format("%s/checkpoints/step-00000011.partial", run);
    CHECK_OK(checkpoint_find(five, &path, NULL));
    CHECK_TEXT(path, five);
    free(path);
    CHECK_OK(folder_create(partial));
    CHECK_I64(found_step(run, NULL), 10);
    save_steps(run, 1, 3, (int64_t[]){-1});
    CHECK(!path_exists(partial));
    free(five);
    free(partial);
}

static void test_retention(void) {
    const char *run = check_folder();
    Toy toy;
    CHECK_OK(toy_open(&toy, run, 2, 2, 2, 4));
    for (int64_t step = 1; step <= 10; step++) {
        CHECK(toy_save(&toy, step) == CHECKPOINT_COMMITTED);
    }
    toy_close(&toy);
    static const int64_t expected[] = {4, 8, 9, 10};
    char *folder = store_folder(run);
    int64_t *steps;
    int count;
    CHECK_OK(store_steps(folder, &steps, &count));
    CHECK_I64(count, 4);
    for (int i = 0; i < count && i < 4; i++) {
        CHECK_I64(steps[i], expected[i]);
    }
    free(steps);

    // Back in time: what is saved again replaces what was there, and later steps are left alone.
    char *nine = step_path(run, 9);
    Checkpoint *c;
    CHECK_OK(toy_open(&toy, run, 1, 3, 1, 0));
    CHECK(toy_save(&toy, 9) == CHECKPOINT_COMMITTED);
    toy_close(&toy);
    CHECK_OK(checkpoint_open(nine, true, &c));
    CHECK_I64(checkpoint_info(c)->ranks, 1);
    checkpoint_close(c);
    CHECK(toy_matches(nine, 3, 1));
    CHECK_OK(store_steps(folder, &steps, &count));
    CHECK(count == 2 && steps[0] == 9 && steps[1] == 10);
    free(steps);
    free(nine);
    free(folder);
}

static void test_one_run_a_folder(void) {
    const char *run = check_folder();
    Toy first, second;
    CHECK_OK(toy_open(&first, run, 1, 1, 1, 0));
    CHECK_FAILS(toy_open(&second, run, 1, 1, 1, 0), "another run writes to");
    second.ranks = 0;
    toy_close(&second);
    toy_close(&first);
    CHECK_OK(toy_open(&first, run, 1, 1, 1, 0));
    toy_close(&first);
}

// A rank that writes too little, too much, or cannot write: nothing is committed, nothing is left, the next save works.
static void test_failures(void) {
    const char *run = check_folder();
    static const CheckpointTensor tensor = {"w", 1, {10}};
    float data[10] = {0};
    static const struct { int64_t begin, end; } second[] = {{5, 10}, {6, 10}, {4, 10}, {5, 11}};
    char *folder = store_folder(run);
    json_t *state = json_object();
    for (int i = 3; i >= 0; i--) {
        CheckpointWriter *w[2];
        for (int r = 0; r < 2; r++) {
            CheckpointSlice slice = {0, SLICE_WEIGHT, r == 0 ? 0 : second[i].begin, r == 0 ? 5 : second[i].end, data};
            CheckpointPlan plan = {.run_folder = run,
                                   .rank = r,
                                   .ranks = 2,
                                   .keep_last = 1,
                                   .layout = "data 2",
                                   .tensors = &tensor,
                                   .tensor_count = 1,
                                   .slices = &slice,
                                   .slice_count = 1};
            CHECK_OK(checkpoint_writer_create(&plan, &w[r]));
        }
        for (int blocked = 1; blocked >= 0; blocked--) {
            // A folder in the place of rank 1's file: that rank cannot write.
            char *obstacle = memory_format("%s/step-00000007.partial/rank-00001.h5", folder);
            if (blocked) {
                CHECK_OK(folder_create(obstacle));
            }
            checkpoint_writer_begin(w[0], 7, state, NULL, 0);
            checkpoint_writer_begin(w[1], 7, state, NULL, 0);
            CheckpointEvent event = CHECKPOINT_NOTHING;
            while (event == CHECKPOINT_NOTHING) {
                double a[CHECKPOINT_FLAGS], b[CHECKPOINT_FLAGS];
                checkpoint_writer_flags(w[0], a);
                checkpoint_writer_flags(w[1], b);
                for (int f = 0; f < CHECKPOINT_FLAGS; f++) {
                    a[f] = a[f] > b[f] ? a[f] : b[f];
                }
                event = checkpoint_writer_advance(w[0], a);
                CHECK(checkpoint_writer_advance(w[1], a) == event);
                usleep(100);
            }
            CHECK(event == (blocked || i > 0 ? CHECKPOINT_FAILED : CHECKPOINT_COMMITTED));
            Strings names = {0};
            CHECK_OK(folder_list(folder, &names));
            CHECK_I64(names.count, event == CHECKPOINT_COMMITTED ? 2 : 1);  // the lock, and what was committed
            strings_free(&names);
            free(obstacle);
        }
        checkpoint_writer_destroy(w[0]);
        checkpoint_writer_destroy(w[1]);
    }
    json_decref(state);
    free(folder);
}

// ---- damage ----

typedef enum Damage { FLIP_FIRST, FLIP_MIDDLE, FLIP_LAST, CUT_ONE, CUT_ALL, LONGER, GONE, A_LINK, DAMAGES } Damage;

static void damage_file(const char *path, Damage damage, const Buffer *whole) {
    Buffer bytes = {0};
    buffer_append(&bytes, whole->data, whole->size);
    size_t at = damage == FLIP_FIRST ? 0 : damage == FLIP_MIDDLE ? bytes.size / 2 : bytes.size - 1;
    if (damage <= FLIP_LAST) {
        // Space and end of line at the end of a manifest mean the same to JSON; make it a letter.
        bytes.data[at] = bytes.data[at] == 'x' ? 'y' : 'x';
    }
    bytes.size -= damage == CUT_ONE ? 2 : damage == CUT_ALL ? bytes.size : 0;
    if (damage == LONGER) {
        buffer_text(&bytes, "}");
    }
    CHECK_OK(folder_remove(path));
    if (damage == A_LINK) {
        CHECK(symlink("/etc/hostname", path) == 0);
    } else if (damage != GONE) {
        CHECK_OK(file_write(path, bytes.data, bytes.size));
    }
    buffer_free(&bytes);
}

static void test_damage(void) {
    const char *run = check_folder();
    save_steps(run, 2, 3, (int64_t[]){1, 2, -1});
    char *newest = step_path(run, 2);
    Strings names = {0};
    CHECK_OK(folder_list(newest, &names));
    CHECK_I64(names.count, 4);
    for (size_t i = 0; i < names.count; i++) {
        char *path = path_join(newest, names.items[i]);
        Buffer whole = {0};
        CHECK_OK(file_read(path, 1 << 20, &whole));
        for (Damage damage = 0; damage < DAMAGES; damage++) {
            bool is_manifest = strcmp(names.items[i], MANIFEST_NAME) == 0;
            if (is_manifest && damage == FLIP_MIDDLE) {
                continue;  // may change nothing that matters, such as a time; see test_manifest
            }
            damage_file(path, damage, &whole);
            Strings skipped = {0};
            CHECK_I64(found_step(run, &skipped), 1);
            CHECK_I64(skipped.count, 1);
            CHECK(skipped.count == 1 && strstr(skipped.items[0], "step-00000002 is damaged and was skipped") != NULL);
            CHECK(skipped.count == 1 && strstr(skipped.items[0], names.items[i]) != NULL);
            strings_free(&skipped);
            CHECK(path_exists(newest));
        }
        CHECK_OK(folder_remove(path));
        CHECK_OK(file_write(path, whole.data, whole.size));
        CHECK_I64(found_step(run, NULL), 2);
        buffer_free(&whole);
        free(path);
    }
    strings_free(&names);

    Buffer text = {0};
    CHECK_OK(checkpoint_describe(run, true, &text));
    CHECK(strstr(text.data, "step-00000001  ") != NULL && strstr(text.data, "step        2\n") != NULL);
    CHECK(strstr(text.data, "block.1.weight") != NULL && strstr(text.data, "3 x 5 x 7") != NULL);
    CHECK(strstr(text.data, "18446744073709551615") != NULL && strstr(text.data, "whole       yes") != NULL);
    // Both damaged: no fresh start by mistake.
    char *one = step_path(run, 1), *first = path_join(one, "rank-00000.h5"), *second = path_join(newest, "rank-00001.h5");
    CHECK_OK(file_write(first, "x", 1));
    buffer_clear(&text);
    CHECK_FAILS(checkpoint_describe(run, true, &text), "not all of its checkpoints are whole");
    CHECK(strstr(text.data, "step-00000001  DAMAGED: ") != NULL);
    CHECK_OK(folder_remove(second));
    CHECK_I64(found_step(run, NULL), -2);
    buffer_free(&text);
    free(one);
    free(first);
    free(second);
    free(newest);
}

// ---- manifests ----

static void test_manifest(void) {
    static const char base[] =
        "{\"format\":\"athanor checkpoint\",\"version\":1,\"step\":3,\"ranks\":1,\"layout\":\"l\",\"created\":\"now\","
        "\"model\":\"00000000000000ff\",\"seed\":\"0000000000000001\",\"state\":{},"
        "\"tensors\":[{\"name\":\"a\",\"shape\":[4,5]},{\"name\":\"b\",\"shape\":[]}],"
        "\"files\":[{\"name\":\"r.h5\",\"bytes\":1000,\"xxh3\":\"0123456789abcdef\"}],"
        "\"slices\":[{\"tensor\":\"a\",\"kind\":\"weight\",\"begin\":8,\"end\":20,\"file\":\"r.h5\",\"dataset\":\"/weight/"
        "a@8\"},"
        "{\"tensor\":\"a\",\"kind\":\"weight\",\"begin\":0,\"end\":7,\"file\":\"r.h5\",\"dataset\":\"/weight/a\"}]}";
    Manifest m;
    CHECK_OK(manifest_parse("m", base, strlen(base), &m));
    CHECK(m.step == 3 && m.model == 255 && m.slice_count == 2 && m.slices[0].begin == 0 && m.files[0].has_slices);
    CHECK_I64(manifest_missing(&m, 0, SLICE_WEIGHT, 0, 20), 7);
    CHECK_I64(manifest_missing(&m, 0, SLICE_WEIGHT, 2, 7), -1);
    CHECK_I64(manifest_missing(&m, 0, SLICE_WEIGHT, 9, 20), -1);
    CHECK_I64(manifest_missing(&m, 0, SLICE_MOMENT1, 3, 4), 3);
    CHECK_I64(manifest_missing(&m, 1, SLICE_WEIGHT, 0, 1), 0);
    manifest_free(&m);

    static const struct {
        const char *from, *to, *part;
    } cases[] = {
        {"athanor checkpoint", "other", "not the manifest of a checkpoint"},
        {"\"version\":1", "\"version\":2", "version 2 is newer"},
        {"\"version\":1", "\"version\":0", "\"version\" is 0"},
        {"\"step\":3", "\"step\":-3", "\"step\" is -3"},
        {"\"step\":3", "\"step\":3.0", "must be a whole number"},
        {"\"step\":3", "\"step\":99999999999999999999", "not valid JSON"},
        {"\"step\":3", "\"step\":3,\"step\":3", "duplicate"},
        {"\"ranks\":1", "\"ranks\":9999999", "\"ranks\" is 9999999"},
        {"\"layout\":\"l\"", "\"layout\":\"l\\u0000\"", "must be a text"},
        {"00000000000000ff", "ff", "16 hexadecimal digits"},
        {"\"state\":{}", "\"state\":[]", "\"state\" must be an object"},
        {"\"name\":\"a\"", "\"name\":\"../a\"", "not a plain name"},
        {"\"name\":\"a\"", "\"name\":\"\"", "not a plain name"},
        {"\"name\":\"b\"", "\"name\":\"a\"", "tensor a stands twice"},
        {"[4,5]", "[4,0]", "shape of tensor a is not possible"},
        {"[4,5]", "[4,-5]", "shape of tensor a is not possible"},
        {"[4,5]", "[4294967296,4294967296]", "shape of tensor a is not possible"},
        {"[4,5]", "[9223372036854775807,2]", "shape of tensor a is not possible"},
        {"[4,5]", "[4,\"5\"]", "shape of tensor a is not possible"},
        {"[4,5]", "[1,1,1,4,5]", "has 5 dimensions"},
        {"\"name\":\"r.h5\"", "\"name\":\"/etc/passwd\"", "not a plain name"},
        {"\"name\":\"r.h5\"", "\"name\":\"..\"", "not a plain name"},
        {"\"name\":\"r.h5\"", "\"name\":\"s.h5\"", "a slice names file \"r.h5\""},
        {"\"name\":\"r.h5\"", "\"name\":\"manifest.json\"", "stands twice"},
        {"\"bytes\":1000", "\"bytes\":-1", "\"bytes\" is -1"},
        {"\"bytes\":1000", "\"bytes\":40", "more elements than its file r.h5 can hold"},
        {"\"begin\":8", "\"begin\":6", "does not fit"},
        {"\"begin\":0,\"end\":7", "\"begin\":0,\"end\":9", "overlap at element 8"},
        {"\"end\":20", "\"end\":21", "\"end\" is 21"},
        {"\"end\":20", "\"end\":8", "\"end\" is 8"},
        {"\"begin\":8", "\"begin\":20", "\"begin\" is 20"},
        {"/weight/a@8", "/weight/../a", "does not fit"},
        {"\"kind\":\"weight\"", "\"kind\":\"momentum\"", "a slice names kind \"momentum\""},
        {"\"tensor\":\"a\"", "\"tensor\":\"c\"", "a slice names tensor \"c\""},
        {"\"tensors\":[", "\"tensors\":[7,", "an object with \"name\" is expected"},
        {"\"files\":", "\"flies\":", "\"files\" is missing"},
        {"{\"format\"", "[{\"format\"", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *at = strstr(base, cases[i].from);
        ensure(at != NULL, "case %zu", i);
        char *text = memory_format("%.*s%s%s", (int)(at - base), base, cases[i].to, at + strlen(cases[i].from));
        CHECK_FAILS(manifest_parse("m", text, strlen(text), &m), cases[i].part);
        free(text);
    }
    for (size_t size = 0; size + 1 < sizeof base; size++) {
        Error *error = manifest_parse("m", base, size, &m);
        CHECK(error != NULL && error->kind == ERROR_DAMAGED);
        error_free(error);
    }
}

// ---- hostile HDF5 ----

typedef enum Trick {
    TRICK_NONE,
    TRICK_DOUBLE,
    TRICK_INTEGER,
    TRICK_BIG_ENDIAN,
    TRICK_TWO_DIMENSIONS,
    TRICK_SHORT,
    TRICK_CHUNKS,
    TRICK_FILTER,
    TRICK_EXTERNAL_STORAGE,
    TRICK_SOFT_LINK,
    TRICK_EXTERNAL_LINK,
    TRICK_VIRTUAL,
    TRICK_GROUP,
    TRICK_COMPACT,
    TRICK_NOT_WRITTEN,
    TRICK_NOTHING,
    TRICKS
} Trick;

// A file whose /weight/w is not what a checkpoint has, though 10 numbers could be read from it by a trusting reader.
static void write_trick(const char *path, const char *other, Trick trick) {
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t group = H5Gcreate2(file, "weight", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), creation = H5Pcreate(H5P_DATASET_CREATE);
    hsize_t extent[2] = {trick == TRICK_SHORT ? 9 : 10, 1}, chunk[2] = {5, 1};
    hid_t space = H5Screate_simple(trick == TRICK_TWO_DIMENSIONS ? 2 : 1, extent, NULL);
    hid_t type = trick == TRICK_DOUBLE       ? H5T_IEEE_F64LE
                 : trick == TRICK_INTEGER    ? H5T_STD_I32LE
                 : trick == TRICK_BIG_ENDIAN ? H5T_IEEE_F32BE
                                             : H5T_IEEE_F32LE;
    if (trick == TRICK_CHUNKS || trick == TRICK_FILTER) {
        H5Pset_chunk(creation, 1, chunk);
        if (trick == TRICK_FILTER) {
            H5Pset_shuffle(creation);
        }
    } else if (trick == TRICK_EXTERNAL_STORAGE) {
        H5Pset_external(creation, "/etc/passwd", 0, 40);
    } else if (trick == TRICK_COMPACT) {
        H5Pset_layout(creation, H5D_COMPACT);
    } else if (trick == TRICK_VIRTUAL) {
        H5Pset_virtual(creation, space, other, "/weight/w", space);
    }
    const char *name = trick == TRICK_SOFT_LINK ? "elsewhere" : "w";
    if (trick == TRICK_EXTERNAL_LINK) {
        H5Lcreate_external(other, "/weight/w", group, "w", H5P_DEFAULT, H5P_DEFAULT);
    } else if (trick == TRICK_GROUP) {
        H5Gclose(H5Gcreate2(group, "w", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    } else if (trick != TRICK_NOTHING) {
        hid_t dataset = H5Dcreate2(group, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
        float values[10] = {0};
        if (trick != TRICK_EXTERNAL_STORAGE && trick != TRICK_VIRTUAL && trick != TRICK_NOT_WRITTEN) {
            H5Dwrite(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
        }
        H5Dclose(dataset);
    }
    if (trick == TRICK_SOFT_LINK) {
        H5Lcreate_soft("/weight/elsewhere", group, "w", H5P_DEFAULT, H5P_DEFAULT);
    }
    H5Sclose(space);
    H5Pclose(creation);
    H5Gclose(group);
    H5Fclose(file);
}

static void test_hostile_hdf5(void) {
    static const char *const parts[TRICKS] = {
        [TRICK_DOUBLE] = "not little-endian 32-bit floats",
        [TRICK_INTEGER] = "not little-endian 32-bit floats",
        [TRICK_BIG_ENDIAN] = "not little-endian 32-bit floats",
        [TRICK_TWO_DIMENSIONS] = "not one-dimensional",
        [TRICK_SHORT] = "its length is not",
        [TRICK_CHUNKS] = "not stored contiguously",
        [TRICK_FILTER] = "not stored contiguously",
        [TRICK_EXTERNAL_STORAGE] = "lie in another file",
        [TRICK_SOFT_LINK] = "has no dataset /weight/w",
        [TRICK_EXTERNAL_LINK] = "has no dataset /weight/w",
        [TRICK_VIRTUAL] = "not stored contiguously",
        [TRICK_GROUP] = "is not a dataset",
        [TRICK_COMPACT] = "not stored contiguously",
        [TRICK_NOT_WRITTEN] = "lie outside the file",
        [TRICK_NOTHING] = "has no dataset /weight/w",
    };
    const char *folder = check_folder();
    char *path = path_join(folder, "rank-00000.h5"), *other = path_join(folder, "other.h5");
    char *manifest_path = path_join(folder, MANIFEST_NAME);
    write_trick(other, NULL, TRICK_NONE);
    for (Trick trick = 0; trick <= TRICKS; trick++) {
        if (trick < TRICKS) {
            write_trick(path, other, trick);
        } else {
            static const char words[] = "\211HDF\r\n\032\n and then nothing that HDF5 knows, only words and words";
            CHECK_OK(file_write(path, words, sizeof words));
        }
        int64_t bytes;
        uint64_t hash;
        CHECK_OK(file_hash(path, &bytes, &hash));
        // The attacker's manifest fits its file; the size is claimed larger only where that is not checked first.
        json_t *m = json_pack("{s:s,s:i,s:i,s:i,s:s,s:s,s:s,s:s,s:{},s:[{s:s,s:[i]}],s:[o],s:[{s:s,s:s,s:i,s:i,s:s,s:s}]}",
                              "format", "athanor checkpoint", "version", 1, "step", 1, "ranks", 1, "layout", "", "created", "",
                              "model", "0000000000000000", "seed", "0000000000000000", "state", "tensors", "name", "w", "shape",
                              10, "files", manifest_file_json("rank-00000.h5", bytes, hash), "slices", "tensor", "w", "kind",
                              "weight", "begin", 0, "end", 10, "file", "rank-00000.h5", "dataset", "/weight/w");
        CHECK_OK(json_write_file(manifest_path, m));
        json_decref(m);
        Checkpoint *c;
        float values[10];
        CHECK_OK(checkpoint_open(folder, true, &c));
        if (trick == TRICK_NONE) {
            CHECK_OK(checkpoint_read(c, "w", SLICE_WEIGHT, 0, 10, values));
        } else {
            CHECK_FAILS(checkpoint_read(c, "w", SLICE_WEIGHT, 0, 10, values), trick < TRICKS ? parts[trick] : "HDF5: ");
        }
        checkpoint_close(c);
    }
    free(path);
    free(other);
    free(manifest_path);
}

static void test_h5dump(void) {
    if (system("h5dump --version > /dev/null 2>&1") != 0) {
        return;
    }
    const char *run = check_folder();
    save_steps(run, 2, 3, (int64_t[]){4, -1});
    char *path = step_path(run, 4);
    char *command =
        memory_format("h5dump -d /moment1/scale '%s'/rank-00000.h5 '%s'/rank-00001.h5 2>&1; h5dump -d /weight/embedding "
                      "-s 100 -c 1 '%s'/rank-00000.h5",
                      path, path, path);
    char text[8192], scale[32], weight[32];
    FILE *pipe = popen(command, "r");
    size_t n = fread(text, 1, sizeof text - 1, pipe);
    text[n] = 0;
    pclose(pipe);
    snprintf(scale, sizeof scale, "(0): %.6g", (double)toy_value(4, 3, SLICE_MOMENT1, 0));
    snprintf(weight, sizeof weight, "(100): %.6g", (double)toy_value(4, 0, SLICE_WEIGHT, 100));
    CHECK(strstr(text, "H5T_IEEE_F32LE") != NULL);
    CHECK(strstr(text, scale) != NULL);
    CHECK(strstr(text, weight) != NULL);
    free(command);
    free(path);
}

int main(void) {
    RUN(test_layouts);
    RUN(test_find);
    RUN(test_retention);
    RUN(test_one_run_a_folder);
    RUN(test_failures);
    RUN(test_damage);
    RUN(test_manifest);
    RUN(test_hostile_hdf5);
    RUN(test_h5dump);
    return check_report();
}
