// Learning-rate schedules: see schedule.h.
#include "train/schedule.h"

#include <math.h>

double schedule_rate(const Schedule *s, int64_t step) {
    if (step < s->warmup_steps) {
        return s->peak * (double)(step + 1) / (double)s->warmup_steps;
    }
    int64_t begin = s->kind == SCHEDULE_WSD ? s->steps - s->decay_steps : s->warmup_steps;
    begin = begin > s->warmup_steps ? begin : s->warmup_steps;
    if (s->kind == SCHEDULE_CONSTANT || step < begin) {
        return s->peak;
    }
    // The last step reaches the floor.
    double done = s->steps - 1 > begin ? (double)(step - begin) / (double)(s->steps - 1 - begin) : 1;
    done = done < 1 ? done : 1;
    double height = s->kind == SCHEDULE_COSINE ? 0.5 * (1 + cos(3.14159265358979323846 * done)) : 1 - done;
    return s->peak * (s->floor + (1 - s->floor) * height);
}
