// athanor configs: the presets, where they lie and what they are for (presets.h).
#include "core/durable.h"
#include "core/text.h"
#include "launch/commands.h"
#include "launch/presets.h"

#include <limits.h>
#include <stdio.h>
#include <unistd.h>

static const char ending[] = ".yaml";

// The folder with runs/ and models/, owned by the caller; NULL where there is none.
static char *presets_folder(void) {
    static const char *const beside[] = {"../share/athanor/configs", "../configs"};
    char program[PATH_MAX] = "";
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    char *bin = length > 0 ? path_folder(program) : memory_string("."), *folder = NULL;
    for (int i = 0; i < 2 && folder == NULL; i++) {
        char *path = path_join(bin, beside[i]), *runs = path_join(path, "runs");
        folder = path_is_folder(runs) ? realpath(path, NULL) : NULL;
        free(runs);
        free(path);
    }
    free(bin);
    return folder;
}

// The names of the presets in FOLDER/kind, without their ending.
static Error *list_presets(const char *folder, const char *kind, Strings *names) {
    Strings files = {0};
    char *path = path_join(folder, kind);
    Error *error = folder_list(path, &files);
    for (size_t i = 0; i < files.count; i++) {
        if (text_ends_with(files.items[i], ending)) {
            files.items[i][strlen(files.items[i]) - strlen(ending)] = 0;
            strings_add(names, files.items[i]);
        }
    }
    strings_free(&files);
    free(path);
    return error;
}

static Error *no_preset(const char *folder, const char *name) {
    Strings runs = {0}, models = {0};
    Error *error = folder != NULL ? list_presets(folder, "runs", &runs) : NULL;
    if (error == NULL && folder != NULL) {
        error = list_presets(folder, "models", &models);
    }
    int nearest = error == NULL ? text_nearest(name, (const char *const *)runs.items, (int)runs.count) : -1;
    bool is_model = false;
    for (size_t i = 0; i < models.count; i++) {
        is_model |= strcmp(models.items[i], name) == 0;
    }
    if (error == NULL && is_model) {
        error = error_new(ERROR_MISSING, "%s is a model, not a run: a configuration has it by 'include: %s/models/%s%s'", name,
                          folder, name, ending);
    } else if (error == NULL && strchr(name, '=') != NULL) {
        error = usage_error("the configuration comes before the settings, such as 'athanor train tiny %s'", name);
    } else if (error == NULL && strchr(name, '/') != NULL && path_is_folder(name)) {
        error = error_new(ERROR_MISSING, "%s is a folder: give the configuration, a file (a run's is its config.yaml)", name);
    } else if (error == NULL && strchr(name, '/') != NULL) {
        error = error_new(ERROR_MISSING, "there is no file %s ('athanor configs' lists the presets)", name);
    } else if (error == NULL && nearest >= 0) {
        error = error_new(ERROR_MISSING, "there is no %s, neither as a file nor as a preset; did you mean %s?", name,
                          runs.items[nearest]);
    } else if (error == NULL) {
        error = error_new(ERROR_MISSING,
                          "there is no %s, neither as a file nor as a preset; 'athanor configs' lists the presets", name);
    }
    strings_free(&runs);
    strings_free(&models);
    return error;
}

Error *preset_find(const char *name, char **path) {
    *path = NULL;
    TRY(path_home(name, path));
    if (path_exists(*path) && !path_is_folder(*path)) {
        return NULL;
    }
    free(*path);
    char *folder = presets_folder();
    *path = folder != NULL ? memory_format("%s/runs/%s%s", folder, name, text_ends_with(name, ending) ? "" : ending) : NULL;
    Error *error = NULL;
    if (*name == 0 || strchr(name, '/') != NULL || *path == NULL || !path_exists(*path)) {
        free(*path);
        *path = NULL;
        error = no_preset(folder, name);
    }
    free(folder);
    return error;
}

// Prints a preset with the first line of its head.
static Error *print_preset(const char *folder, const char *kind, const char *name) {
    char *path = memory_format("%s/%s/%s%s", folder, kind, name, ending);
    Buffer text = {0};
    Error *error = file_read(path, 1 << 20, &text);
    if (error == NULL) {
        const char *line = text.size > 0 ? text.data : "";
        line += strspn(line, "# ");
        printf("  %-14s %.*s\n", name, (int)strcspn(line, "\n"), line);
    }
    buffer_free(&text);
    free(path);
    return error;
}

static Error *print_presets(const char *folder, const char *kind) {
    Strings names = {0};
    Error *error = list_presets(folder, kind, &names);
    for (size_t i = 0; i < names.count && error == NULL; i++) {
        error = print_preset(folder, kind, names.items[i]);
    }
    strings_free(&names);
    return error;
}

static Error *run(const void *options, int count, char **arguments) {
    char *folder = presets_folder();
    if (folder == NULL) {
        return error_new(ERROR_MISSING, "there are no presets: neither ../share/athanor/configs nor ../configs lies beside the "
                                        "folder of this program; 'cmake --install' puts them there");
    }
    printf("runs, for 'athanor train NAME', in %s/runs\n", folder);
    Error *error = print_presets(folder, "runs");
    if (error == NULL) {
        printf("\nmodels, for 'include: FILE' in a configuration, in %s/models\n", folder);
        error = print_presets(folder, "models");
    }
    free(folder);
    return error;
}

const Command command_configs = {
    .name = "configs",
    .arguments = "",
    .summary = "list the presets, configurations that come with the program",
    .details = "'athanor train NAME' trains a run by its name; 'include: FILE' in a configuration takes a model. Paths in a\n"
               "configuration count from the current folder: launch/quickstart, in a clone, makes the data of its runs there.",
    .example = "  athanor configs",
    .run = run,
};
