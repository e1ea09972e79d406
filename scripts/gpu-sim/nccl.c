// NCCL (libnccl.so.2) between processes of one machine, for tests without a GPU.
//
// The process that makes a unique id runs a hub, a thread on a loopback socket; every rank has one
// connection to it. A rank's calls are carried out by a thread of its own, one group after another, so
// that a communicator is "in progress" for as long as a peer is missing, as with the real library in
// non-blocking mode. Only what the engine calls is here: f32, point to point, and the sum of all.
// A dead peer is an error for all others, or, with GPU_SIM_NCCL_SILENT in the environment, none: they
// wait, as with the real library when a host vanishes.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int ncclResult_t;

enum {
    SUCCESS = 0,
    SYSTEM_ERROR = 2,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    REMOTE_ERROR = 6,
    IN_PROGRESS = 7,
};

enum { MAX_RANKS = 64, FLOAT32 = 7, SUM = 0, CONFIG_MAGIC = 0xcafebeef };

// What travels: HELLO and its answer, numbers for one peer, numbers for the sum of all, and news of an
// error.
enum { HELLO, SEND, REDUCE, FAILED };

struct message {
    int32_t kind;
    int32_t peer;
    uint64_t bytes;
};

typedef struct {
    char internal[128];
} ncclUniqueId;

struct config {
    size_t size;
    unsigned magic;
    unsigned version;
    int blocking;
};

struct operation {
    enum { DO_SEND, DO_RECEIVE, DO_REDUCE } what;
    struct ncclComm *comm;
    const void *from;
    void *to;
    size_t bytes;
    int peer;
    struct operation *next;
};

struct arrival {
    void *payload;
    size_t bytes;
    struct arrival *next;
};

struct ncclComm {
    int socket, rank, ranks, port;
    int blocking;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t worker;
    // Groups that are still to be done; both of these and the state are the mutex's.
    struct operation *queue;
    int working, closing;
    ncclResult_t failure;
    struct arrival *arrived[MAX_RANKS];
};

int gpu_sim_inside(const char *what, uint64_t start, size_t size);

static __thread int group_depth;
static __thread struct operation *group;

static int transfer(int socket, void *data, size_t bytes, int writing) {
    char *at = data;
    while (bytes) {
        ssize_t done = writing ? send(socket, at, bytes, MSG_NOSIGNAL) : recv(socket, at, bytes, 0);
        if (done <= 0)
            return -1;
        at += done;
        bytes -= done;
    }
    return 0;
}

static int put(int socket, int kind, int peer, const void *payload, size_t bytes) {
    struct message message = {kind, peer, bytes};
    return transfer(socket, &message, sizeof message, 1) || transfer(socket, (void *)payload, bytes, 1);
}

// The payload of a message; the caller frees it.
static void *payload_of(int socket, const struct message *message) {
    void *payload = malloc(message->bytes + 1);
    if (payload && transfer(socket, payload, message->bytes, 0)) {
        free(payload);
        return NULL;
    }
    return payload;
}

static int loopback(int *port, int connecting) {
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(connecting ? *port : 0)};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connecting ? connect(s, (void *)&address, length)
                   : bind(s, (void *)&address, length) || listen(s, MAX_RANKS)) {
        close(s);
        return -1;
    }
    getsockname(s, (void *)&address, &length);
    if (!connecting)
        *port = ntohs(address.sin_port);
    return s;
}

// The hub: waits for all ranks, then passes numbers on and makes sums, in the order of ranks.
static void *hub(void *argument) {
    int listener = (int)(intptr_t)argument, ranks = 0, here = 0, sockets[MAX_RANKS];
    float *parts[MAX_RANKS] = {0};
    size_t part_bytes = 0;
    int parts_here = 0, silent = getenv("GPU_SIM_NCCL_SILENT") != NULL;
    memset(sockets, -1, sizeof sockets);
    while (!ranks || here < ranks) {
        struct message hello;
        int s = accept4(listener, NULL, NULL, SOCK_CLOEXEC), on = 1;
        setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (s < 0 || transfer(s, &hello, sizeof hello, 0) || hello.kind != HELLO ||
            (ranks && ranks != (int)hello.bytes) || sockets[hello.peer] >= 0) {
            close(s);
            continue;
        }
        ranks = hello.bytes;
        sockets[hello.peer] = s;
        here++;
    }
    close(listener);
    for (int i = 0; i < ranks; i++)
        put(sockets[i], HELLO, i, NULL, 0);
    for (int open = ranks; open > 0;) {
        struct pollfd ready[MAX_RANKS];
        for (int i = 0; i < ranks; i++)
            ready[i] = (struct pollfd){sockets[i], POLLIN, 0};
        if (poll(ready, ranks, -1) < 0)
            continue;
        for (int i = 0; i < ranks; i++) {
            struct message message;
            void *payload;
            if (sockets[i] < 0 || !ready[i].revents)
                continue;
            if (transfer(sockets[i], &message, sizeof message, 0) ||
                !(payload = payload_of(sockets[i], &message))) {
                close(sockets[i]);
                sockets[i] = -1;
                open--;
                for (int j = 0; j < ranks && !silent; j++)
                    if (sockets[j] >= 0)
                        put(sockets[j], FAILED, REMOTE_ERROR, NULL, 0);
                continue;
            }
            if (message.kind == SEND) {
                if (sockets[message.peer] >= 0)
                    put(sockets[message.peer], SEND, i, payload, message.bytes);
                free(payload);
                continue;
            }
            parts[i] = payload;
            int differs = parts_here > 0 && part_bytes != message.bytes;
            part_bytes = message.bytes;
            parts_here++;
            if (!differs && parts_here < ranks)
                continue;
            for (int j = 1; j < ranks && !differs; j++)
                for (size_t k = 0; k < part_bytes / sizeof(float); k++)
                    parts[0][k] += parts[j][k];
            for (int j = 0; j < ranks; j++) {
                if (sockets[j] >= 0 && differs)
                    put(sockets[j], FAILED, INVALID_USAGE, NULL, 0);
                else if (sockets[j] >= 0)
                    put(sockets[j], REDUCE, j, parts[0], part_bytes);
            }
            for (int j = 0; j < ranks; j++) {
                free(parts[j]);
                parts[j] = NULL;
            }
            parts_here = 0;
        }
    }
    return NULL;
}

// Waits for numbers of a peer (of the hub for a sum), putting aside what comes from others.
static ncclResult_t receive(struct ncclComm *comm, int kind, int peer, void *to, size_t bytes) {
    while (!(kind == SEND && comm->arrived[peer])) {
        struct message message;
        if (transfer(comm->socket, &message, sizeof message, 0))
            return REMOTE_ERROR;
        if (message.kind == FAILED)
            return message.peer;
        if (message.kind == HELLO)
            return kind == HELLO ? SUCCESS : INVALID_USAGE;
        struct arrival **last, *arrival = calloc(1, sizeof *arrival);
        arrival->bytes = message.bytes;
        arrival->payload = payload_of(comm->socket, &message);
        if (!arrival->payload)
            return REMOTE_ERROR;
        for (last = &comm->arrived[message.peer]; *last; last = &(*last)->next)
            ;
        *last = arrival;
        if (kind == REDUCE && message.kind == REDUCE)
            peer = message.peer, kind = SEND;
    }
    struct arrival *arrival = comm->arrived[peer];
    ncclResult_t result = arrival->bytes == bytes ? SUCCESS : INVALID_USAGE;
    if (result == SUCCESS)
        memcpy(to, arrival->payload, bytes);
    comm->arrived[peer] = arrival->next;
    free(arrival->payload);
    free(arrival);
    return result;
}

static ncclResult_t perform(struct ncclComm *comm, const struct operation *o) {
    if (o->what == DO_RECEIVE)
        return receive(comm, SEND, o->peer, o->to, o->bytes);
    if (put(comm->socket, o->what == DO_SEND ? SEND : REDUCE, o->peer, o->from, o->bytes))
        return REMOTE_ERROR;
    return o->what == DO_SEND ? SUCCESS : receive(comm, REDUCE, 0, o->to, o->bytes);
}

// A communicator's own thread: joins, then does what is queued.
static void *work(void *argument) {
    struct ncclComm *comm = argument;
    comm->socket = loopback(&comm->port, 1);
    struct message hello = {HELLO, comm->rank, comm->ranks};
    ncclResult_t result = SYSTEM_ERROR;
    if (comm->socket >= 0 && !transfer(comm->socket, &hello, sizeof hello, 1))
        result = receive(comm, HELLO, 0, NULL, 0);
    pthread_mutex_lock(&comm->mutex);
    for (;;) {
        if (result != SUCCESS && comm->failure == SUCCESS)
            comm->failure = result;
        comm->working = comm->queue != NULL;
        pthread_cond_broadcast(&comm->changed);
        while (!comm->queue && !comm->closing)
            pthread_cond_wait(&comm->changed, &comm->mutex);
        if (comm->closing)
            break;
        struct operation *operation = comm->queue;
        comm->working = 1;
        pthread_mutex_unlock(&comm->mutex);
        result = comm->failure ? comm->failure : perform(comm, operation);
        pthread_mutex_lock(&comm->mutex);
        comm->queue = operation->next;
        free(operation);
    }
    pthread_mutex_unlock(&comm->mutex);
    return NULL;
}

static ncclResult_t state(struct ncclComm *comm) {
    pthread_mutex_lock(&comm->mutex);
    while (comm->blocking && comm->working && !comm->failure)
        pthread_cond_wait(&comm->changed, &comm->mutex);
    ncclResult_t now = comm->failure ? comm->failure : comm->working ? IN_PROGRESS : SUCCESS;
    pthread_mutex_unlock(&comm->mutex);
    return now;
}

ncclResult_t ncclGetVersion(int *version) {
    *version = 22809;
    return SUCCESS;
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {
        "no error", "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",
        "remote process exited or there was a network error", "NCCL operation in progress",
    };
    return result >= 0 && result <= IN_PROGRESS ? texts[result] : "unknown result code";
}

const char *ncclGetLastError(struct ncclComm *comm) {
    return "";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    int port, listener = loopback(&port, 0);
    pthread_t thread;
    if (listener < 0 || pthread_create(&thread, NULL, hub, (void *)(intptr_t)listener))
        return SYSTEM_ERROR;
    pthread_detach(thread);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "gpu-sim %d", port);
    return SUCCESS;
}

ncclResult_t ncclCommInitRankConfig(struct ncclComm **out, int ranks, ncclUniqueId id, int rank,
                                    struct config *config) {
    int port;
    if (ranks < 1 || ranks > MAX_RANKS || rank < 0 || rank >= ranks || !config ||
        config->magic != CONFIG_MAGIC || config->size < sizeof *config ||
        sscanf(id.internal, "gpu-sim %d", &port) != 1)
        return INVALID_ARGUMENT;
    struct ncclComm *comm = calloc(1, sizeof *comm);
    comm->rank = rank;
    comm->ranks = ranks;
    comm->port = port;
    comm->socket = -1;
    comm->blocking = config->blocking != 0;
    comm->working = 1;
    pthread_mutex_init(&comm->mutex, NULL);
    pthread_cond_init(&comm->changed, NULL);
    if (pthread_create(&comm->worker, NULL, work, comm))
        return SYSTEM_ERROR;
    *out = comm;
    return state(comm);
}

ncclResult_t ncclCommGetAsyncError(struct ncclComm *comm, ncclResult_t *error) {
    *error = state(comm);
    return SUCCESS;
}

ncclResult_t ncclCommFinalize(struct ncclComm *comm) {
    return state(comm);
}

ncclResult_t ncclCommAbort(struct ncclComm *comm) {
    pthread_mutex_lock(&comm->mutex);
    comm->closing = 1;
    if (comm->socket >= 0)
        shutdown(comm->socket, SHUT_RDWR);
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->mutex);
    pthread_join(comm->worker, NULL);
    close(comm->socket);
    free(comm);
    return SUCCESS;
}

ncclResult_t ncclCommDestroy(struct ncclComm *comm) {
    return ncclCommAbort(comm);
}

static ncclResult_t enqueue(struct operation operation, int type) {
    if (!operation.comm || type != FLOAT32 ||
        (operation.from && !gpu_sim_inside("ncclSend", (uint64_t)operation.from, operation.bytes)) ||
        (operation.to && !gpu_sim_inside("ncclRecv", (uint64_t)operation.to, operation.bytes)))
        return INVALID_ARGUMENT;
    struct operation **last = &group;
    while (*last)
        last = &(*last)->next;
    *last = malloc(sizeof operation);
    **last = operation;
    return SUCCESS;
}

// What was enqueued outside of a group is a group of its own.
static ncclResult_t start(ncclResult_t result) {
    if (group_depth || result != SUCCESS)
        return result;
    struct ncclComm *comm = group ? group->comm : NULL;
    if (!comm)
        return SUCCESS;
    pthread_mutex_lock(&comm->mutex);
    // Sends first: all of a group happen at once.
    for (int sends = 1; sends >= 0; sends--) {
        for (struct operation **at = &group; *at;) {
            struct operation *operation = *at, **last = &comm->queue;
            if ((operation->what == DO_SEND) != sends) {
                at = &operation->next;
                continue;
            }
            *at = operation->next;
            operation->next = NULL;
            while (*last)
                last = &(*last)->next;
            *last = operation;
        }
    }
    comm->working = 1;
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->mutex);
    return state(comm);
}

ncclResult_t ncclGroupStart(void) {
    group_depth++;
    return SUCCESS;
}

ncclResult_t ncclGroupEnd(void) {
    group_depth--;
    return start(SUCCESS);
}

ncclResult_t ncclSend(const void *from, size_t count, int type, int peer, struct ncclComm *comm,
                      void *stream) {
    struct operation operation = {DO_SEND, comm, from, NULL, count * sizeof(float), peer, NULL};
    return start(enqueue(operation, type));
}

ncclResult_t ncclRecv(void *to, size_t count, int type, int peer, struct ncclComm *comm,
                      void *stream) {
    struct operation operation = {DO_RECEIVE, comm, NULL, to, count * sizeof(float), peer, NULL};
    return start(enqueue(operation, type));
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, int type, int reduction,
                           struct ncclComm *comm, void *stream) {
    struct operation operation = {DO_REDUCE, comm, from, to, count * sizeof(float), 0, NULL};
    return reduction == SUM ? start(enqueue(operation, type)) : INVALID_ARGUMENT;
}
