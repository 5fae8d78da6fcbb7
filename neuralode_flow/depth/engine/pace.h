/* How the sizes of steps are chosen, as time/formulas.py does it: by SciPy's rules or by torchdiffeq's. It is rounded as there. */

enum { SCIPY, TORCHDIFFEQ };
typedef struct {
    int rules;
    double exponent, safety, least, most; /* of the factor by which a step changes */
} Pace;

/* Where a state stands on its way to a goal: its time, the step that is proposed, as what it began before it was tried, and
   whether it was. */
typedef struct {
    double t, h, begun;
    int again;
} Stand;

/* A step that is to be tried: its size, where it ends, and what is proposed at least after one that is cut short. */
typedef struct {
    double h, end, proposed;
} Try;

/* Returns 1 where the step is too small to be any. */
static int planned(const Pace *pace, const Stand *at, double goal, Try *next) {
    if (pace->rules == SCIPY) {
        const double least = 10 * fabs(nextafter(at->t, INFINITY) - at->t), h = !at->again && at->h < least ? least : at->h;
        next->end = at->t + h < goal ? at->t + h : goal;
        next->h = next->end - at->t, next->proposed = at->begun;
        return !(h >= least);
    }
    const volatile double longer = at->h * (1 + 1e-9); /* a product and a sum, each rounded */
    const int cut = at->t + longer >= goal;
    next->h = cut ? goal - at->t : at->h, next->end = cut ? goal : at->t + next->h, next->proposed = at->h;
    return !(at->t + next->h > at->t);
}

/* Whether a step with that error over the tolerance is accepted; h is what is proposed next. */
static int judged(const Pace *pace, double error, const Try *tried, int again, double goal, double *h) {
    const int scipy = pace->rules == SCIPY, accepted = scipy ? error < 1 : error <= 1;
    double factor = pace->most;
    if (error != 0) {
        const double change = pow(error, pace->exponent);
        factor = scipy ? pace->safety * change : pace->safety / change;
        const double least = scipy ? (accepted ? 0 : pace->least) : error < 1 ? 1 : pace->least;
        factor = factor > least ? factor : least;
        factor = factor < pace->most ? factor : pace->most;
    }
    if (scipy && accepted && again && factor > 1) factor = 1;
    *h = tried->h * factor;
    if (accepted && tried->end == goal && *h < tried->proposed) *h = tried->proposed;
    return accepted;
}
