# Included by _core.pyx: instruction sets and threads, for _config.py and _threads.py.

def compiled_instruction_sets():
    """Names, best first."""
    cdef const char *const *names = fsm_instruction_sets()
    found = []
    while names[len(found)] != NULL:
        found.append(names[len(found)].decode())
    return found


def cpu_has(str instruction_set):
    return bool(fsm_cpu_has(instruction_set.encode()))


def choose_instruction_set(str instruction_set):
    return bool(fsm_choose_instruction_set(instruction_set.encode()))


def openmp_runtime():
    cdef const char *name = fsm_openmp_runtime()
    return name.decode() if name != NULL else None


def processor_count():
    return fsm_processor_count()


def initialise_threads(int limit, int openmp_limit):
    fsm_initialise_threads(limit, openmp_limit)


def thread_limit():
    return fsm_thread_limit()


def request_threads(int threads):
    fsm_request_threads(threads)


def limit_calling_thread(int threads):
    return fsm_limit_calling_thread(threads)
