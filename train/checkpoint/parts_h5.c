// One rank's parts as an HDF5 file: see parts_h5.h.
#define H5_USE_110_API  // the same calls with newer libraries
#include "train/checkpoint/parts_h5.h"

#include "core/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// ---- errors and the lock ----

// Takes the lock. The settings are the thread's own in some builds of the library, so they are made each time.
static void enter(void) {
    pthread_mutex_lock(&lock);
    static bool first = true;
    if (first) {
        first = false;
        H5dont_atexit();  // nothing of ours stays open, and exit must not race with a thread that writes
        H5open();
        H5PLset_loading_state(0);  // no filter code from wherever a file or the environment says
    }
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static void leave(void) {
    H5Eclear2(H5E_DEFAULT);
    pthread_mutex_unlock(&lock);
}

typedef struct Reason {
    char text[256];
    int system;  // the system call's errno, ENOMEM where HDF5 had no memory; 0: HDF5 did not like what it read
} Reason;

// H5Ewalk's first call upward is the innermost frame: the reason. Where the system refused something, its number is enough:
// "file write failed: time = ..., errno = 28, error message = 'No space left on device', buf = ...".
static herr_t keep_first(unsigned n, const H5E_error2_t *frame, void *context) {
    static const char system_number[] = "errno = ";
    if (n == 0 && frame->desc != NULL) {
        Reason *reason = context;
        const char *number = strstr(frame->desc, system_number);
        snprintf(reason->text, sizeof reason->text, "%s", frame->desc);
        reason->text[strcspn(reason->text, "\n")] = 0;
        bool memory = frame->maj_num == H5E_RESOURCE && (frame->min_num == H5E_NOSPACE || frame->min_num == H5E_CANTALLOC);
        reason->system = number != NULL ? atoi(number + strlen(system_number)) : memory ? ENOMEM : 0;
    }
    return 0;
}

static Error *h5_failure(const char *file, const char *what) {
    Reason reason = {.text = "no reason given"};
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &reason);
    H5Eclear2(H5E_DEFAULT);
    return reason.system != 0 ? error_system(reason.system, "%s: %s: HDF5", file, what)
                              : damaged("%s: %s: HDF5: %s", file, what, reason.text);
}

// Closes an object unless it was never opened.
static void close_with(herr_t (*close_function)(hid_t), hid_t id) {
    if (id >= 0) {
        close_function(id);
    }
}

static hid_t access_properties(void) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 10, 7) && !(H5_VERSION_GE(1, 11, 0) && H5_VERSION_LE(1, 12, 0))
    // A committed file never changes and a partial one has one writer; locks only fail on network file systems.
    H5Pset_file_locking(access, false, true);
#endif
    return access;
}

// ---- types ----

// HDF5's type of an element; the caller closes it. A 16-bit float is a 32-bit one whose fields, then size, then bias are set.
static hid_t type_of(DataType type) {
    hid_t made = H5Tcopy(data_type_bytes(type) == 1 ? H5T_STD_U8LE : H5T_IEEE_F32LE);
    if (data_type_bytes(type) == 2) {
        size_t exponent = type == TYPE_BF16 ? 8 : 5, fraction = 15 - exponent;
        H5Tset_fields(made, 15, fraction, exponent, 0, fraction);
        H5Tset_size(made, 2);
        H5Tset_ebias(made, ((size_t)1 << (exponent - 1)) - 1);
    }
    return made;
}

static int64_t bytes_of(const H5Dataset *dataset) {
    int64_t count = 1;
    for (int d = 0; d < dataset->dims; d++) {
        count *= dataset->extents[d];
    }
    return count * data_type_bytes(dataset->type);
}

int h5_part(const CheckpointTensor *tensor, const CheckpointPart *part, H5Dataset out[2]) {
    int64_t count = boxes_count(part->boxes, part->box_count), scales = data_type_scales(part->type, count);
    out[0] = (H5Dataset){.path = memory_format("/%s/%s", part->kind, tensor->name),
                         .type = part->type,
                         .dims = 1,
                         .extents = {count},
                         .shape = tensor->shape,
                         .boxes = part->boxes,
                         .shape_dims = tensor->dims,
                         .box_count = part->box_count};
    if (part->box_count == 1) {
        out[0].dims = tensor->dims;
        for (int d = 0; d < tensor->dims; d++) {
            out[0].extents[d] = part->boxes[0].end[d] - part->boxes[0].begin[d];
        }
    }
    if (scales == 0) {
        return 1;
    }
    out[1] = (H5Dataset){.path = memory_format("/%s.scales/%s", part->kind, tensor->name), .dims = 1, .extents = {scales}};
    return 2;
}

void h5_free(H5Dataset *datasets, int count) {
    for (int i = 0; i < count; i++) {
        free(datasets[i].path);
    }
    free(datasets);
}

// ---- writing ----

static Error *add_attribute(const char *file, hid_t dataset, const char *name, const int64_t *values, int dims,
                            const hsize_t *extents) {
    bool empty = false;
    for (int d = 0; d < dims; d++) {
        empty = empty || extents[d] == 0;
    }
    hid_t space = empty ? H5Screate(H5S_NULL) : H5Screate_simple(dims, extents, NULL);
    hid_t attribute = H5Acreate2(dataset, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    bool failed = attribute < 0 || (!empty && H5Awrite(attribute, H5T_NATIVE_INT64, values) < 0);
    close_with(H5Aclose, attribute);
    close_with(H5Sclose, space);
    return failed ? h5_failure(file, "an attribute cannot be written") : NULL;
}

static Error *add_origin(const char *file, hid_t handle, const H5Dataset *dataset) {
    int dims = dataset->shape_dims;
    int64_t *bounds = memory_new((size_t)(dataset->box_count * dims * 2), sizeof *bounds), *bound = bounds;
    for (int i = 0; i < dataset->box_count; i++) {
        for (int d = 0; d < dims; d++) {
            *bound++ = dataset->boxes[i].begin[d];
            *bound++ = dataset->boxes[i].end[d];
        }
    }
    Error *error = add_attribute(file, handle, "shape", dataset->shape, 1, (hsize_t[]){(hsize_t)dims});
    if (error == NULL) {
        error = add_attribute(file, handle, "boxes", bounds, 3, (hsize_t[]){(hsize_t)dataset->box_count, (hsize_t)dims, 2});
    }
    free(bounds);
    return error;
}

static Error *create_dataset(const char *file, hid_t handle, hid_t links, hid_t creation, H5Dataset *dataset) {
    hsize_t extents[BOX_MOST_DIMS];
    for (int d = 0; d < dataset->dims; d++) {
        extents[d] = (hsize_t)dataset->extents[d];
    }
    hid_t space = H5Screate_simple(dataset->dims, extents, NULL), type = type_of(dataset->type);
    hid_t made = H5Dcreate2(handle, dataset->path, type, space, links, creation, H5P_DEFAULT);
    Error *error = NULL;
    if (made < 0) {
        error = h5_failure(file, dataset->path);
    } else {
        haddr_t offset = H5Dget_offset(made);
        dataset->offset = (int64_t)offset;
        if (offset == HADDR_UNDEF || offset > INT64_MAX) {
            error = h5_failure(file, dataset->path);
        }
    }
    if (error == NULL && dataset->shape != NULL) {
        error = add_origin(file, made, dataset);
    }
    close_with(H5Dclose, made);
    close_with(H5Tclose, type);
    close_with(H5Sclose, space);
    return error;
}

// Makes `file` (replaced if it exists) with these datasets, their numbers not written.
static Error *create_file(const char *file, H5Dataset *datasets, int count) {
    enter();
    hid_t access = access_properties(), links = H5Pcreate(H5P_LINK_CREATE), creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    // Space is given at once and never filled: the numbers come from us.
    H5Pset_layout(creation, H5D_CONTIGUOUS);
    H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
    // No time stamps: equal runs have equal files.
    H5Pset_obj_track_times(creation, 0);
    errno = 0;
    hid_t handle = H5Fcreate(file, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    Error *error = handle < 0 ? h5_failure(file, "cannot be created") : NULL;
    for (int i = 0; i < count && error == NULL; i++) {
        error = create_dataset(file, handle, links, creation, &datasets[i]);
    }
    if (handle >= 0 && error == NULL && H5Fflush(handle, H5F_SCOPE_GLOBAL) < 0) {
        error = h5_failure(file, "cannot be written");
    }
    if (handle >= 0 && H5Fclose(handle) < 0 && error == NULL) {
        error = h5_failure(file, "cannot be closed");
    }
    close_with(H5Pclose, creation);
    close_with(H5Pclose, links);
    close_with(H5Pclose, access);
    leave();
    if (error != NULL && error->kind == ERROR_DAMAGED) {
        error->kind = ERROR_FAILURE;  // our own file: not damaged, but impossible to write
    }
    return error;
}

static int compare_pieces(const void *left, const void *right) {
    const H5Piece *a = left, *b = right;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

// The pieces of a file of `size` bytes.
static void find_pieces(H5Layout *layout, int64_t size) {
    H5Piece *taken = memory_new((size_t)layout->count, sizeof *taken);
    for (int i = 0; i < layout->count; i++) {
        taken[i] = (H5Piece){layout->datasets[i].offset, bytes_of(&layout->datasets[i]), i, 0};
    }
    qsort(taken, (size_t)layout->count, sizeof *taken, compare_pieces);
    layout->pieces = memory_new(2 * (size_t)layout->count + 1, sizeof *layout->pieces);
    int64_t at = 0;
    size_t structure = 0;
    for (int i = 0; i <= layout->count; i++) {
        int64_t next = i < layout->count ? taken[i].offset : size;
        ensure(i == layout->count || next >= at, "datasets overlap at %lld", (long long)at);
        if (next > at) {
            layout->pieces[layout->piece_count++] = (H5Piece){at, next - at, -1, structure};
            structure += (size_t)(next - at);
        }
        if (i < layout->count) {
            layout->pieces[layout->piece_count++] = taken[i];
            at = next + taken[i].bytes;
        }
    }
    layout->bytes = size > at ? size : at;
    free(taken);
}

static Error *read_structure(const char *file, H5Layout *layout) {
    int descriptor = open(file, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (descriptor < 0 || fstat(descriptor, &info) != 0) {
        Error *error = error_system(errno, "%s cannot be read back", file);
        if (descriptor >= 0) {
            close(descriptor);
        }
        return error;
    }
    find_pieces(layout, info.st_size);
    Error *error = NULL;
    for (int i = 0; i < layout->piece_count && error == NULL; i++) {
        const H5Piece *piece = &layout->pieces[i];
        if (piece->dataset >= 0) {
            continue;
        }
        buffer_reserve(&layout->structure, (size_t)piece->bytes);
        ssize_t got = pread(descriptor, layout->structure.data + layout->structure.size, (size_t)piece->bytes, piece->offset);
        if (got != piece->bytes) {
            error = error_system(got < 0 ? errno : EIO, "%s cannot be read back", file);
        }
        layout->structure.size += (size_t)piece->bytes;
    }
    close(descriptor);
    return error;
}

Error *h5_lay_out(const char *scratch, H5Dataset *datasets, int count, H5Layout *out) {
    *out = (H5Layout){.datasets = datasets, .count = count};
    Error *error = create_file(scratch, datasets, count);
    if (error == NULL) {
        error = h5_locate(scratch, datasets, count);  // a reader will find everything
    }
    if (error == NULL) {
        error = read_structure(scratch, out);
    }
    unlink(scratch);
    if (error != NULL) {
        out->datasets = NULL;
        out->count = 0;
        h5_layout_free(out);
    }
    return error;
}

void h5_layout_free(H5Layout *layout) {
    h5_free(layout->datasets, layout->count);
    free(layout->pieces);
    buffer_free(&layout->structure);
    *layout = (H5Layout){0};
}

// ---- reading ----

static bool is_hard_link(hid_t handle, const char *path) {
    H5L_info_t info;
    return H5Lget_info(handle, path, &info, H5P_DEFAULT) >= 0 && info.type == H5L_TYPE_HARD;
}

static bool has_extents(hid_t space, const H5Dataset *dataset) {
    hsize_t extents[H5S_MAX_RANK];
    bool same = H5Sget_simple_extent_ndims(space) == dataset->dims && H5Sget_simple_extent_dims(space, extents, NULL) >= 0;
    for (int d = 0; same && d < dataset->dims; d++) {
        same = extents[d] == (hsize_t)dataset->extents[d];
    }
    return same;
}

// The attribute "shape", where there is one, is the tensor's: the dataset's own extents need not tell.
static bool has_shape(hid_t handle, const H5Dataset *dataset) {
    int64_t shape[BOX_MOST_DIMS];
    if (dataset->shape == NULL || dataset->shape_dims == 0 || H5Aexists(handle, "shape") <= 0) {
        return true;
    }
    hid_t attribute = H5Aopen(handle, "shape", H5P_DEFAULT), space = H5Aget_space(attribute), type = H5Aget_type(attribute);
    bool same = H5Tequal(type, H5T_STD_I64LE) > 0 && H5Sget_simple_extent_npoints(space) == dataset->shape_dims &&
                H5Aread(attribute, H5T_NATIVE_INT64, shape) >= 0 &&
                memcmp(shape, dataset->shape, (size_t)dataset->shape_dims * sizeof *shape) == 0;
    close_with(H5Tclose, type);
    close_with(H5Sclose, space);
    close_with(H5Aclose, attribute);
    return same;
}

// Why a dataset is not one that h5_lay_out makes; NULL if it is.
static const char *strange(hid_t handle, const H5Dataset *dataset) {
    hid_t type = H5Dget_type(handle), space = H5Dget_space(handle), creation = H5Dget_create_plist(handle);
    hid_t wanted = type_of(dataset->type);
    const char *problem = NULL;
    if (type < 0 || H5Tequal(type, wanted) <= 0) {
        problem = "its numbers are not of the type in the manifest";
    } else if (space < 0 || H5Sis_simple(space) <= 0 || !has_extents(space, dataset)) {
        problem = "its extents are not those in the manifest";
    } else if (creation < 0 || H5Pget_layout(creation) != H5D_CONTIGUOUS) {
        problem = "it is not stored contiguously";
    } else if (H5Pget_nfilters(creation) != 0) {
        problem = "it has filters";
    } else if (H5Pget_external_count(creation) != 0) {
        problem = "its numbers lie in another file";
    } else if (!has_shape(handle, dataset)) {
        problem = "it is of a tensor of another shape than in the manifest";
    }
    close_with(H5Pclose, creation);
    close_with(H5Sclose, space);
    close_with(H5Tclose, wanted);
    close_with(H5Tclose, type);
    return problem;
}

static Error *locate_dataset(const char *file, hid_t handle, int64_t file_bytes, H5Dataset *wanted) {
    // "/weight/name": both steps must be hard links of this file.
    const char *second = strchr(wanted->path + 1, '/');
    char *group = memory_format("%.*s", second != NULL ? (int)(second - wanted->path) : 0, wanted->path);
    bool linked = second != NULL && is_hard_link(handle, group) && is_hard_link(handle, wanted->path);
    free(group);
    if (!linked) {
        return damaged("%s has no dataset %s", file, wanted->path);
    }
    H5O_info_t info;
    if (H5Oget_info_by_name(handle, wanted->path, &info, H5P_DEFAULT) < 0 || info.type != H5O_TYPE_DATASET) {
        return damaged("%s: %s is not a dataset", file, wanted->path);
    }
    hid_t dataset = H5Dopen2(handle, wanted->path, H5P_DEFAULT);
    if (dataset < 0) {
        return h5_failure(file, wanted->path);
    }
    const char *problem = strange(dataset, wanted);
    haddr_t offset = problem == NULL ? H5Dget_offset(dataset) : HADDR_UNDEF;
    close_with(H5Dclose, dataset);
    int64_t bytes = bytes_of(wanted);  // the manifest's limit keeps this small
    if (problem == NULL && (offset == HADDR_UNDEF || bytes > file_bytes || offset > (haddr_t)(file_bytes - bytes))) {
        problem = "its numbers lie outside the file";
    }
    wanted->offset = (int64_t)offset;
    return problem != NULL ? damaged("%s: dataset %s: %s", file, wanted->path, problem) : NULL;
}

Error *h5_locate(const char *file, H5Dataset *datasets, int count) {
    struct stat info;
    if (stat(file, &info) != 0) {
        return error_system(errno, "%s cannot be read", file);
    }
    enter();
    hid_t access = access_properties();
    hid_t handle = H5Fopen(file, H5F_ACC_RDONLY, access);
    Error *error = handle < 0 ? h5_failure(file, "cannot be opened") : NULL;
    if (error != NULL && stat(file, &info) != 0) {  // gone since: HDF5 says only that it could not look at it
        error_free(error);
        error = error_system(errno, "%s cannot be read", file);
    }
    for (int i = 0; i < count && error == NULL; i++) {
        error = locate_dataset(file, handle, info.st_size, &datasets[i]);
    }
    close_with(H5Fclose, handle);
    close_with(H5Pclose, access);
    leave();
    return error;
}
