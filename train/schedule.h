// Learning-rate schedules: warm-up, then a shape. Functions of the step, so that a resumed run needs nothing.
#pragma once

#include <stdint.h>

typedef enum ScheduleKind {
    SCHEDULE_COSINE,    // half a cosine down to the floor at the last step (Loshchilov & Hutter 2017)
    SCHEDULE_LINEAR,    // a line down to the floor at the last step
    SCHEDULE_CONSTANT,  // flat
    SCHEDULE_WSD,  // warm-up, stable, decay: flat, then a line down to the floor over the last decay_steps (Hu et al. 2024)
} ScheduleKind;

typedef struct Schedule {
    ScheduleKind kind;
    double peak;           // the learning rate after warm-up
    double floor;          // as a share of the peak, in [0, 1]
    int64_t warmup_steps;  // step s < warmup_steps uses peak * (s + 1) / warmup_steps
    int64_t decay_steps;   // WSD only
    int64_t steps;         // of the whole run
} Schedule;

// The learning rate of step `step`, counted from 0.
double schedule_rate(const Schedule *schedule, int64_t step);
