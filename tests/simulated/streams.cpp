// The simulated GPU's streams, events, copies, launches, captures and graphs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <thread>

#include "runtime.h"

#include "tests/simulated/engine.h"

using namespace simulator;

// Operations with the edges between them.
struct SimulatedGraph {
    struct Node {
        std::shared_ptr<const Operation> operation;
        std::vector<size_t> after;
    };
    std::vector<Node> nodes;
};
struct SimulatedGraphRun {
    std::shared_ptr<const SimulatedGraph> graph;
};

namespace {

typedef std::lock_guard<std::recursive_mutex> Hold;

// A recording: the streams that take part hold the nodes that their next operation comes after.
struct Capture {
    cudaStream_t origin;
    std::thread::id thread;
    bool invalid = false;
    SimulatedGraph graph;
};

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

struct SimulatedStream {
    std::deque<Item> items;
    bool destroyed = false;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> last_nodes;
};
struct SimulatedEvent {
    std::shared_ptr<Moment> moment;    // of the last record; NULL: none
    std::shared_ptr<Capture> capture;  // where that was recorded into a graph
    std::vector<size_t> nodes;
};

namespace {

std::vector<cudaStream_t> streams;
std::map<const void *, int> shared_allowed;
std::string launch_name;
// How many launches still go well; -1: all.
int fail_after = getenv("ATHANOR_SIMULATED_FAIL") != NULL ? atoi(getenv("ATHANOR_SIMULATED_FAIL")) : -1;
uint64_t random_state, random_seed = ~0ull;

uint64_t next_random() {
    if (random_seed != settings().seed) {
        random_seed = settings().seed;
        random_state = random_seed * 0x9E3779B97F4A7C15ull + 1;
    }
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> 20;
}

// ---- Running

Progress advance(std::unique_ptr<Pending> &pending, const Operation &operation) {
    if (sticky != cudaSuccess) {
        return Progress::DONE;
    }
    if (operation.run) {
        operation.run();
        check_margins(operation.name);
        return Progress::DONE;
    }
    bool started = pending == NULL;
    if (started) {
        pending = operation.start();
    }
    Progress progress = pending->advance();
    if (progress == Progress::DONE) {
        check_margins(operation.name);
    }
    return progress == Progress::NONE && started ? Progress::SOME : progress;
}

// Lets the head of a stream go on.
Progress advance(cudaStream_t stream) {
    Item &item = stream->items.front();
    if (item.waits_for != NULL) {
        if (!item.waits_for->reached) {
            return Progress::NONE;
        }
    } else if (item.reaches != NULL) {
        item.reaches->reached = true;
        item.reaches->seconds = now();
    } else {
        Progress progress = advance(item.pending, *item.operation);
        if (progress != Progress::DONE) {
            return progress;
        }
    }
    stream->items.pop_front();
    return Progress::DONE;
}

void remove_finished() {
    for (size_t i = streams.size(); i-- > 0;) {
        if (streams[i]->destroyed && streams[i]->items.empty()) {
            delete streams[i];
            streams.erase(streams.begin() + (ptrdiff_t)i);
        }
    }
}

// One launch of a graph: its nodes in an order that the edges allow.
struct GraphPending : Pending {
    std::shared_ptr<const SimulatedGraph> graph;
    std::vector<std::unique_ptr<Pending>> pending;
    std::vector<bool> done;
    size_t left;

    explicit GraphPending(std::shared_ptr<const SimulatedGraph> graph_) : graph(std::move(graph_)) {
        left = graph->nodes.size();
        pending.resize(left);
        done.resize(left);
    }

    bool is_ready(size_t node) const {
        const std::vector<size_t> &after = graph->nodes[node].after;
        return !done[node] && std::all_of(after.begin(), after.end(), [&](size_t before) { return done[before]; });
    }

    Progress advance() override {
        if (left == 0) {
            return Progress::DONE;
        }
        std::vector<size_t> ready;
        for (size_t i = 0; i < done.size(); i++) {
            if (is_ready(i)) {
                ready.push_back(i);
            }
        }
        for (size_t i = 0, first = choose(ready.size()); i < ready.size(); i++) {
            size_t node = ready[(first + i) % ready.size()];
            Progress progress = ::advance(pending[node], *graph->nodes[node].operation);
            if (progress == Progress::DONE) {
                done[node] = true;
                left--;
            }
            if (progress != Progress::NONE) {
                return left == 0 ? Progress::DONE : Progress::SOME;
            }
        }
        return Progress::NONE;
    }
};

// What the timing lets happen right behind a call.
void after_call() {
    Timing timing = settings().timing;
    if (timing == Timing::EARLY) {
        while (run_one()) {
        }
    } else if (timing == Timing::RANDOM) {
        while (next_random() % 2 == 0 && run_one()) {
        }
    }
}

// ---- Recording

Capture *recording_of_this_thread() {
    for (cudaStream_t stream : streams) {
        if (stream->capture != NULL && stream->capture->thread == std::this_thread::get_id()) {
            return stream->capture.get();
        }
    }
    return NULL;
}

// The nodes that `ends` come after, and themselves.
std::vector<bool> ancestors(const SimulatedGraph &graph, std::vector<size_t> ends) {
    std::vector<bool> found(graph.nodes.size());
    while (!ends.empty()) {
        size_t node = ends.back();
        ends.pop_back();
        if (!found[node]) {
            found[node] = true;
            ends.insert(ends.end(), graph.nodes[node].after.begin(), graph.nodes[node].after.end());
        }
    }
    return found;
}

void merge(std::vector<size_t> &into, const std::vector<size_t> &from) {
    for (size_t node : from) {
        if (std::find(into.begin(), into.end(), node) == into.end()) {
            into.push_back(node);
        }
    }
}

}  // namespace

namespace simulator {

size_t choose(size_t count) {
    return settings().seed == 0 || count == 0 ? 0 : next_random() % count;
}

bool idle() {
    return std::all_of(streams.begin(), streams.end(), [](cudaStream_t stream) { return stream->items.empty(); });
}

bool run_one() {
    for (size_t i = 0, first = choose(streams.size()); i < streams.size(); i++) {
        cudaStream_t stream = streams[(first + i) % streams.size()];
        if (!stream->items.empty() && advance(stream) != Progress::NONE) {
            remove_finished();
            return true;
        }
    }
    return false;
}

void run_until(const std::function<bool()> &condition) {
    while (!condition()) {
        if (run_one()) {
            continue;
        }
        bool others = false;
        for (cudaStream_t stream : streams) {
            others |= !stream->items.empty() && stream->items.front().pending != NULL;
        }
        if (!others) {
            die("streams wait for each other for ever");
        }
        std::this_thread::yield();  // for other ranks
    }
}

cudaError_t enqueue(cudaStream_t stream, Operation operation) {
    if (sticky != cudaSuccess) {
        return note(sticky);
    }
    if (stream == NULL) {
        die("%s on the legacy stream, which this simulator does not have", operation.name.c_str());
    }
    auto shared = std::make_shared<const Operation>(std::move(operation));
    if (stream->capture != NULL) {
        if (stream->capture->invalid) {
            return note(cudaErrorStreamCaptureInvalidated);
        }
        SimulatedGraph &graph = stream->capture->graph;
        graph.nodes.push_back({shared, stream->last_nodes});
        stream->last_nodes = {graph.nodes.size() - 1};
        return cudaSuccess;
    }
    stream->items.push_back({shared, NULL, NULL, NULL});
    after_call();
    return cudaSuccess;
}

cudaError_t forbid_while_recording() {
    Capture *capture = recording_of_this_thread();
    if (capture == NULL) {
        return cudaSuccess;
    }
    capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
}

}  // namespace simulator

// ---- Streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    Hold hold(simulator::lock);
    *stream = NULL;
    if (flags != cudaStreamNonBlocking) {
        die("a stream that is not cudaStreamNonBlocking");
    }
    if (sticky != cudaSuccess) {
        return note(sticky);
    }
    streams.push_back(*stream = new SimulatedStream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

// What is in the stream is still done.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Hold hold(simulator::lock);
    stream->destroyed = true;
    remove_finished();
    return note(sticky);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Hold hold(simulator::lock);
    cudaError_t error = forbid_while_recording();
    if (error == cudaSuccess) {
        run_until([&] { return stream->items.empty(); });
    }
    return note(error != cudaSuccess ? error : sticky);
}

cudaError_t cudaDeviceSynchronize(void) {
    Hold hold(simulator::lock);
    cudaError_t error = forbid_while_recording();
    if (error == cudaSuccess) {
        run_until(idle);
    }
    return note(error != cudaSuccess ? error : sticky);
}

// A query that says no lets something happen, so that asking again and again ends.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Hold hold(simulator::lock);
    cudaError_t error = forbid_while_recording();
    if (error == cudaSuccess && !stream->items.empty()) {
        run_one();
        error = cudaErrorNotReady;
    }
    return note(sticky != cudaSuccess ? sticky : error);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    Hold hold(simulator::lock);
    return enqueue(stream, {"a host function", [=] { function(data); }, {}});
}

// ---- Events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = new SimulatedEvent;
    return note(sticky);
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Hold hold(simulator::lock);
    delete event;
    return note(sticky);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Hold hold(simulator::lock);
    if (sticky != cudaSuccess) {
        return note(sticky);
    }
    event->capture = stream->capture;
    event->nodes = stream->last_nodes;
    if (stream->capture != NULL) {
        event->moment = NULL;
        return cudaSuccess;
    }
    event->moment = std::make_shared<Moment>();
    stream->items.push_back({NULL, event->moment, NULL, NULL});
    after_call();
    return cudaSuccess;
}

// The record that counts is the last before this call.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    Hold hold(simulator::lock);
    if (sticky != cudaSuccess) {
        return note(sticky);
    }
    if (event->capture != NULL) {
        if (stream->capture == NULL) {
            stream->capture = event->capture;
            stream->last_nodes = event->nodes;
        } else if (stream->capture != event->capture) {
            return note(cudaErrorStreamCaptureIsolation);
        } else {
            merge(stream->last_nodes, event->nodes);
        }
        return cudaSuccess;
    }
    if (stream->capture != NULL) {
        stream->capture->invalid = true;
        return note(cudaErrorStreamCaptureIsolation);
    }
    if (event->moment != NULL) {
        stream->items.push_back({NULL, NULL, event->moment, NULL});
        after_call();
    }
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Hold hold(simulator::lock);
    cudaError_t error = forbid_while_recording();
    if (error == cudaSuccess && event->capture != NULL) {
        error = cudaErrorCapturedEvent;
    }
    if (error == cudaSuccess && event->moment != NULL) {
        std::shared_ptr<Moment> moment = event->moment;
        run_until([&] { return moment->reached; });
    }
    return note(error != cudaSuccess ? error : sticky);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    Hold hold(simulator::lock);
    cudaError_t error = forbid_while_recording();
    if (error == cudaSuccess && event->capture != NULL) {
        error = cudaErrorCapturedEvent;
    }
    if (error == cudaSuccess && event->moment != NULL && !event->moment->reached) {
        run_one();
        error = cudaErrorNotReady;
    }
    return note(sticky != cudaSuccess ? sticky : error);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    Hold hold(simulator::lock);
    if (start->moment == NULL || end->moment == NULL) {
        return note(cudaErrorInvalidResourceHandle);
    }
    if (!start->moment->reached || !end->moment->reached) {
        return note(cudaErrorNotReady);
    }
    *ms = (float)((end->moment->seconds - start->moment->seconds) * 1e3);
    return note(sticky);
}

// ---- Copies

namespace {

struct Copy {
    unsigned char *to;
    size_t to_pitch;
    const unsigned char *from;
    size_t from_pitch, width, height;

    void run() const {
        for (size_t row = 0; row < height; row++) {
            memmove(to + row * to_pitch, from + row * from_pitch, width);
        }
    }
    size_t extent(size_t pitch) const {
        return (height - 1) * pitch + width;
    }
};

enum Place { DEVICE, PINNED, PAGEABLE, WRONG };

Place place_of(const void *memory, size_t bytes) {
    if (is_device_memory(memory, bytes)) {
        return DEVICE;
    }
    if (is_device_memory(memory, 1)) {
        return WRONG;
    }
    return is_pinned_memory(memory, bytes) ? PINNED : PAGEABLE;
}

// Ordinary host memory is read at the call and written before the call returns; pinned memory is read and written when the
// copy runs.
cudaError_t copy_async(Copy copy, cudaMemcpyKind kind, cudaStream_t stream) {
    if (sticky != cudaSuccess) {
        return note(sticky);
    }
    if (copy.width == 0 || copy.height == 0) {
        return cudaSuccess;
    }
    Place to = place_of(copy.to, copy.extent(copy.to_pitch)), from = place_of(copy.from, copy.extent(copy.from_pitch));
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (to == WRONG || from == WRONG ||
        (kind != cudaMemcpyDefault && (to_device != (to == DEVICE) || from_device != (from == DEVICE)))) {
        fprintf(stderr, "simulated GPU: a copy of %zu x %zu bytes does not lie in the memory that its kind says\n", copy.height,
                copy.width);
        return note(cudaErrorInvalidValue);
    }
    if (stream->capture != NULL && (to == PAGEABLE || from == PAGEABLE)) {
        stream->capture->invalid = true;
        return note(cudaErrorStreamCaptureUnsupported);
    }
    std::shared_ptr<std::vector<unsigned char>> staged;
    if (from == PAGEABLE) {
        staged = std::make_shared<std::vector<unsigned char>>(copy.height * copy.width);
        Copy{staged->data(), copy.width, copy.from, copy.from_pitch, copy.width, copy.height}.run();
        copy.from = staged->data();
        copy.from_pitch = copy.width;
    }
    cudaError_t error = enqueue(stream, {"a copy", [copy, staged] { copy.run(); }, {}});
    if (error == cudaSuccess && to == PAGEABLE) {
        run_until([&] { return stream->items.empty(); });
        error = note(sticky);
    }
    return error;
}

}  // namespace

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    Hold hold(simulator::lock);
    return copy_async({(unsigned char *)to, bytes, (const unsigned char *)from, bytes, bytes, 1}, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
    Hold hold(simulator::lock);
    if (to_pitch < width || from_pitch < width) {
        return note(cudaErrorInvalidValue);
    }
    return copy_async({(unsigned char *)to, to_pitch, (const unsigned char *)from, from_pitch, width, height}, kind, stream);
}

// The legacy stream does not wait for the non-blocking ones, and here are no others.
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    Hold hold(simulator::lock);
    cudaError_t error = forbid_while_recording();
    error = error != cudaSuccess ? error : sticky;
    if (error == cudaSuccess && bytes > 0) {
        if (place_of(to, bytes) == WRONG || place_of(from, bytes) == WRONG) {
            return note(cudaErrorInvalidValue);
        }
        memmove(to, from, bytes);
    }
    return note(error);
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    Hold hold(simulator::lock);
    if (bytes > 0 && !is_device_memory(memory, bytes)) {
        return note(cudaErrorInvalidValue);
    }
    return enqueue(stream, {"a memset", [=] { memset(memory, value, bytes); }, {}});
}

// ---- Recording

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    Hold hold(simulator::lock);
    if (sticky != cudaSuccess || stream->capture != NULL) {
        return note(sticky != cudaSuccess ? sticky : cudaErrorInvalidValue);
    }
    if (mode != cudaStreamCaptureModeThreadLocal) {
        die("only captures of mode cudaStreamCaptureModeThreadLocal");
    }
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream;
    stream->capture->thread = std::this_thread::get_id();
    stream->last_nodes.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Hold hold(simulator::lock);
    *graph = NULL;
    std::shared_ptr<Capture> capture = stream->capture;
    if (capture == NULL || capture->origin != stream) {
        return note(cudaErrorStreamCaptureUnmatched);
    }
    // Whatever another stream took on must have come back to the first.
    std::vector<bool> joined = ancestors(capture->graph, stream->last_nodes);
    for (cudaStream_t other : streams) {
        if (other->capture == capture) {
            other->capture = NULL;
            other->last_nodes.clear();
        }
    }
    // Events that were recorded keep the recording, but what it holds belongs to the graph alone.
    SimulatedGraph recorded = std::move(capture->graph);
    capture->graph.nodes.clear();
    if (sticky != cudaSuccess || capture->invalid) {
        return note(sticky != cudaSuccess ? sticky : cudaErrorStreamCaptureInvalidated);
    }
    if (std::find(joined.begin(), joined.end(), false) != joined.end()) {
        return note(cudaErrorStreamCaptureUnjoined);
    }
    *graph = new SimulatedGraph(std::move(recorded));
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    Hold hold(simulator::lock);
    *status = stream->capture == NULL    ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *run, cudaGraph_t graph, unsigned long long flags) {
    *run = new SimulatedGraphRun{std::make_shared<const SimulatedGraph>(*graph)};
    return note(sticky);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return note(sticky);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t run) {
    delete run;
    return note(sticky);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t run, cudaStream_t stream) {
    Hold hold(simulator::lock);
    if (stream->capture != NULL) {
        die("a graph is launched into a stream that is being recorded");
    }
    std::shared_ptr<const SimulatedGraph> graph = run->graph;
    return enqueue(stream, {"a graph", {}, [graph] { return std::make_unique<GraphPending>(graph); }});
}

// ---- Kernels

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    Hold hold(simulator::lock);
    if (value < 0 || (size_t)value > shared_limit()) {
        return note(cudaErrorInvalidValue);
    }
    shared_allowed[kernel] = value;
    return note(sticky);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel) {
    Hold hold(simulator::lock);
    auto at = shared_allowed.find(kernel);
    *attributes = {};
    attributes->maxDynamicSharedSizeBytes = at != shared_allowed.end() ? at->second : 48 << 10;
    attributes->maxThreadsPerBlock = 1024;
    return note(sticky);
}

cudaError_t simulated_launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> thread) {
    Hold hold(simulator::lock);
    std::string name = launch_name.empty() ? "a kernel" : launch_name;
    launch_name.clear();
    Launch launch = {NULL, config->gridDim, config->blockDim, 1, config->dynamicSmemBytes};
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttribute &attribute = config->attrs[i];
        if (attribute.id != cudaLaunchAttributeClusterDimension || attribute.val.clusterDim.y != 1 ||
            attribute.val.clusterDim.z != 1) {
            die("%s is launched with an attribute that the simulator does not have", name.c_str());
        }
        launch.cluster = attribute.val.clusterDim.x;
    }
    launch.kernel = name.c_str();
    const char *fault = launch_fault(launch);
    auto allowed = shared_allowed.find(kernel);
    if (fault == NULL && launch.dynamic_shared > 48 << 10 &&
        (allowed == shared_allowed.end() || launch.dynamic_shared > (size_t)allowed->second)) {
        fault = "more dynamic shared memory than the kernel was allowed";
    }
    if (fault != NULL) {
        fprintf(stderr, "simulated GPU: the launch of %s is refused: %s\n", name.c_str(), fault);
        return note(cudaErrorInvalidConfiguration);
    }
    if (fail_after == 0) {
        fail_after = -1;
        return enqueue(config->stream, {name, [] { sticky = note(cudaErrorIllegalAddress); }, {}});
    }
    fail_after -= fail_after > 0;
    return enqueue(config->stream, {name,
                                    [=] {
                                        Launch own = launch;
                                        own.kernel = name.c_str();
                                        run(own, thread);
                                    },
                                    {}});
}

// ---- For tests

void simulated_launch_name(const char *name) {
    Hold hold(simulator::lock);
    launch_name = name;
}

void simulated_fail_launch(int after) {
    Hold hold(simulator::lock);
    fail_after = after;
}

void simulated_settings(uint64_t seed, const char *timing) {
    Hold hold(simulator::lock);
    settings().seed = seed;
    settings().timing = strcmp(timing, "early") == 0    ? Timing::EARLY
                        : strcmp(timing, "random") == 0 ? Timing::RANDOM
                                                        : Timing::LATE;
}

int simulated_pending(void) {
    Hold hold(simulator::lock);
    int pending = 0;
    for (cudaStream_t stream : streams) {
        for (const Item &item : stream->items) {
            pending += item.operation != NULL;
        }
    }
    return pending;
}
