// Presets: the configurations that come with the program, found from any folder.
//
// They lie in share/athanor/configs beside the folder of an installed program, in configs of the source tree for one that was
// only built there: runs/NAME.yaml to train, models/NAME.yaml to include. What a preset is for stands in its first line.
#pragma once

#include "core/memory.h"

// The configuration that `name` means, owned by the caller: the file of that path, or the preset of that name (with or without
// .yaml). ERROR_MISSING where there is neither.
Error *preset_find(const char *name, char **path) MUST_CHECK;
