/* Steps that do not wait for each other, shared out among threads. */

typedef void Step(Work *, long, double *);
typedef struct {
    Work *w;
    Step *step;
    long count, next;
    int threads, arrived;
} Job;

/* What one thread does: whatever step is the next. */
static void labour(void *arg) {
    Job *job = arg;
    const int me = __atomic_fetch_add(&job->arrived, 1, __ATOMIC_RELAXED);
    if (me >= job->threads) return;
    double *room = job->w->room + me * job->w->room_size;
    for (long t; (t = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->count;) job->step(job->w, t, room);
}

static void *run(void *arg) {
    labour(arg);
    return 0;
}

/* GOMP_parallel of the OpenMP library that torch has loaded: its idle threads wait for work by spinning, and others
   beside them would only get the time that is left. They do not survive a fork. */
typedef void Pool(void (*)(void *), void *, unsigned, unsigned);
static Pool *pool;
static pid_t home;
void set_pool(void *function) { pool = (Pool *)function, home = getpid(); }

/* Where helpers of our own may run: not on the processor of the caller, where a new thread often starts and stays. */
static pthread_attr_t *elsewhere(pthread_attr_t *room) {
#ifdef __GLIBC__
    cpu_set_t allowed;
    const int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof allowed, &allowed)) return 0;
    CPU_CLR(here, &allowed);
    if (!CPU_COUNT(&allowed) || pthread_attr_init(room)) return 0;
    if (!pthread_attr_setaffinity_np(room, sizeof allowed, &allowed)) return room;
    pthread_attr_destroy(room);
#endif
    return 0;
}

/* step(w, t, room) for t = 0 ... count - 1, by the threads of torch, or by new ones that live as long as the call. */
static void each(Work *w, int threads, long count, Step *step) {
    if (threads > count) threads = (int)count;
    Job job = {w, step, count, 0, threads, 0};
    if (threads <= 1)
        for (long t = 0; t < count; t++) step(w, t, w->room);
    else if (pool && getpid() == home)
        pool(labour, &job, (unsigned)threads, 0);
    else {
        pthread_t ids[MAX_THREADS];
        int made = 0;
        pthread_attr_t room, *where = elsewhere(&room);
        while (made < threads - 1 && !pthread_create(&ids[made], where, run, &job)) made++;
        labour(&job);
        while (made > 0) pthread_join(ids[--made], 0);
        if (where) pthread_attr_destroy(where);
    }
}

/* How many of the threads so many products are worth. */
static int crew(double products, int d, int threads) {
    return products * d * d * d < WORTH ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
}
