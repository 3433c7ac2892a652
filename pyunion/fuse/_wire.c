/* What pyfuse3 cannot say to the kernel, said on the wire between libfuse and /dev/fuse.
 *
 * An ordinary extension module that is imported with RTLD_GLOBAL before pyfuse3, so that the functions of libfuse which
 * it defines are the ones that pyfuse3 calls:
 *
 *   fuse_session_process_buf  answers INIT with more flags than libfuse
 *   fuse_session_receive_buf  reads without blocking: a client that is killed takes its request along, and a blocking
 *                             read would then keep the interpreter's lock
 *
 * And serve() reads requests itself and hands them to a Python function, which is quicker than by libfuse and pyfuse3,
 * and knows requests that these do not. Those that the function does not want go on to libfuse.
 *
 * It works on the kernel's protocol (linux/fuse.h, stable) and not on libfuse's structures, so one source fits every
 * libfuse 3. It decides nothing: flags and functions come from pyunion/fuse/wire.py. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 31
#include <fuse_lowlevel.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* linux/fuse.h of the build may be older than the kernel. */
#define WIRE_INIT_EXT (1ULL << 30)
#define WIRE_WRITEBACK_CACHE (1ULL << 16)
#define WIRE_PASSTHROUGH (1ULL << 37)
#define WIRE_INIT_STACK_DEPTH 36 /* where max_stack_depth is in struct fuse_init_out */
struct wire_backing_map { int32_t fd; uint32_t flags; uint64_t padding; };
#define WIRE_BACKING_OPEN _IOW(229, 1, struct wire_backing_map)
#define WIRE_BACKING_CLOSE _IOW(229, 2, uint32_t)

static struct {
    void (*process)(struct fuse_session *, const struct fuse_buf *);
    int (*receive)(struct fuse_session *, struct fuse_buf *);
} libfuse;

static uint64_t wanted, offered, granted; /* INIT flags, both words of them */
static int session_fd = -1;
static int bound;           /* libfuse's functions are found, and pyfuse3 does call ours */
static size_t buffer_size = (1 << 20) + 4096;
static uint64_t hooked;     /* bit n: requests with opcode n go to the hook */
static PyObject *hook;
static struct { void *mem; size_t size; } received; /* by serve(); with a size: a request that libfuse has to get */

/* The real functions: libfuse is found by a symbol of its that we do not define. */
static int resolve(void)
{
    Dl_info info;
    void *handle;

    if (libfuse.process)
        return 1;
    if (!dladdr((void *)fuse_session_fd, &info))
        return 0;
    handle = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle)
        return 0;
    libfuse.receive = dlsym(handle, "fuse_session_receive_buf");
    if (!libfuse.receive)
        return 0;
    libfuse.process = dlsym(handle, "fuse_session_process_buf");
    return libfuse.process != NULL;
}

/* libfuse answers INIT into a socket that sits on the session's descriptor for the moment; the answer is completed and
 * sent on. The descriptor keeps its number and its open file, so whatever waits for it goes on. */
static void process_init(struct fuse_session *se, const struct fuse_buf *buf, const struct fuse_init_in *in, size_t size)
{
    struct { struct fuse_out_header header; struct fuse_init_out out; char rest[256]; } answer;
    int pair[2], saved;
    uint64_t flags;
    ssize_t length;

    session_fd = fuse_session_fd(se);
    offered = in->flags;
    if (in->flags & WIRE_INIT_EXT && size >= offsetof(struct fuse_init_in, flags2) + sizeof in->flags2)
        offered |= (uint64_t)in->flags2 << 32;
    saved = fcntl(session_fd, F_DUPFD_CLOEXEC, 3);
    if (saved < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        if (saved >= 0)
            close(saved);
        libfuse.process(se, buf);
        return;
    }
    memset(&answer, 0, sizeof answer);
    dup2(pair[0], session_fd);
    libfuse.process(se, buf);
    length = recv(pair[1], &answer, sizeof answer, MSG_DONTWAIT);
    dup3(saved, session_fd, O_CLOEXEC);
    close(saved);
    close(pair[0]);
    close(pair[1]);
    if (length < (ssize_t)sizeof answer.header)
        return;
    if (!answer.header.error && length >= (ssize_t)(sizeof answer.header + sizeof answer.out)) {
        granted = wanted & offered;
        flags = answer.out.flags | granted;
        if (answer.out.flags & WIRE_INIT_EXT)
            flags |= (uint64_t)answer.out.flags2 << 32;
        if (granted & WIRE_PASSTHROUGH) { /* which excludes the writeback cache; branches may not be stacked themselves */
            const uint32_t depth = 1;

            flags &= ~WIRE_WRITEBACK_CACHE;
            memcpy((char *)&answer.out + WIRE_INIT_STACK_DEPTH, &depth, sizeof depth);
        }
        if (flags >> 32)
            flags |= WIRE_INIT_EXT;
        /* Reads ahead of a branch that does not answer must not take the places of all others. */
        answer.out.max_background = answer.out.congestion_threshold = UINT16_MAX;
        answer.out.flags = (uint32_t)flags;
        answer.out.flags2 = (uint32_t)(flags >> 32);
        buffer_size = (answer.out.max_write > 131072 ? answer.out.max_write : 131072) + 4096;
        fcntl(session_fd, F_SETFL, fcntl(session_fd, F_GETFL) | O_NONBLOCK);
    }
    if (write(session_fd, &answer, length) < 0)
        perror("pyunion: INIT");
}

static void reply(uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = { sizeof header + size, -error, unique };
    struct iovec parts[2] = { { &header, sizeof header }, { (void *)data, size } };

    if (writev(session_fd, parts, size ? 2 : 1) < 0 && errno != ENOENT) /* which says that it was interrupted */
        perror("pyunion: a reply was refused");
}

static int is_hooked(const struct fuse_in_header *header)
{
    return header->opcode < 64 && hook && hooked >> header->opcode & 1;
}

/* What Python says to a request: bytes are the answer, a number is an errno, None is no answer, and True says that a
 * task will answer. Whether there is such a task. NULL is an exception, of which the caller gets EIO. */
static int answer(uint64_t unique, PyObject *result)
{
    Py_buffer data;

    if (result == Py_True)
        return 1;
    if (result == Py_None)
        return 0;
    if (result && PyLong_CheckExact(result)) {
        reply(unique, (int)PyLong_AsLong(result), NULL, 0);
        return 0;
    }
    if (!result || PyObject_GetBuffer(result, &data, PyBUF_SIMPLE) < 0) {
        PyErr_WriteUnraisable(hook);
        reply(unique, EIO, NULL, 0);
        return 0;
    }
    reply(unique, 0, data.buf, data.len);
    PyBuffer_Release(&data);
    return 0;
}

static int call_hook(const struct fuse_in_header *header, const char *body, size_t size)
{
    PyObject *given[] = {
        PyLong_FromLong(header->opcode), PyLong_FromUnsignedLongLong(header->unique),
        PyLong_FromUnsignedLongLong(header->nodeid), PyLong_FromUnsignedLong(header->uid),
        PyLong_FromUnsignedLong(header->gid), PyLong_FromUnsignedLong(header->pid),
        PyBytes_FromStringAndSize(body, size),
    };
    const size_t count = sizeof given / sizeof *given;
    PyObject *result = NULL;
    size_t filled = 0;
    int has_task;

    while (filled < count && given[filled])
        filled++;
    if (filled == count)
        result = PyObject_Vectorcall(hook, given, count, NULL);
    has_task = answer(header->unique, result);
    Py_XDECREF(result);
    for (size_t i = 0; i < count; i++)
        Py_XDECREF(given[i]);
    return has_task;
}

EXPORT void fuse_session_process_buf(struct fuse_session *se, const struct fuse_buf *buf)
{
    const struct fuse_in_header *header = buf->mem;
    const char *body = (const char *)(header + 1);
    size_t size = buf->size - sizeof *header;

    if (!resolve())
        abort(); /* configure() has found them before */
    bound = 1;
    if (buf->flags & FUSE_BUF_IS_FD || buf->size < sizeof *header) {
        libfuse.process(se, buf);
        return;
    }
    if (header->opcode == FUSE_INIT) {
        process_init(se, buf, (const struct fuse_init_in *)body, size);
        if (is_hooked(header))
            call_hook(header, body, size); /* which has nothing to answer */
        return;
    }
    if (is_hooked(header))
        call_hook(header, body, size);
    else
        libfuse.process(se, buf);
}

static uint64_t clock_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* One request from the kernel into `received`; -1 with errno if there is none. */
static ssize_t receive(void)
{
    ssize_t length;

    if (!received.mem && posix_memalign(&received.mem, 4096, buffer_size)) {
        received.mem = NULL;
        errno = ENOMEM;
        return -1;
    }
    do
        length = read(session_fd, received.mem, buffer_size);
    while (length < 0 && errno == ENOENT);
    return length;
}

/* Look for the next request instead of going to sleep, as long as that mostly finds one: to wake a processor that has
 * gone idle takes longer than most requests. Each success earns a credit, each failure costs some; without credit one
 * wait of many begins with a look, to see whether things have changed. */
static ssize_t spin(unsigned int spin_us)
{
    enum { MOST = 8, MISS = 2, PROBE = 32 };
    static int credit = MOST, since_probe;
    const uint64_t end = clock_us() + spin_us;
    ssize_t length;

    errno = EAGAIN;
    if (credit <= 0 && ++since_probe < PROBE)
        return -1;
    since_probe = 0;
    do {
        length = receive();
        if (length >= 0 || errno != EAGAIN) {
            credit += credit < MOST;
            return length;
        }
    } while (clock_us() < end);
    credit = credit > MISS ? credit - MISS : 0;
    errno = EAGAIN;
    return -1;
}

/* Wait for a request; -1 with errno if there is none: EAGAIN after the time, or if `other` is readable before. */
static ssize_t await(int other, int wait_ms, unsigned int spin_us)
{
    struct pollfd fds[2] = { { .fd = session_fd, .events = POLLIN }, { .fd = other, .events = POLLIN } };
    ssize_t length = spin(spin_us);

    if (length >= 0 || errno != EAGAIN)
        return length;
    if (poll(fds, other < 0 ? 1 : 2, wait_ms) < 0)
        return -1;
    if (!fds[0].revents) {
        errno = EAGAIN;
        return -1;
    }
    return receive();
}

/* What serve() returns. */
enum { IDLE, SERVED, FOR_LIBFUSE };

PyDoc_STRVAR(serve_doc,
"serve(other, slice_us, wait_ms, spin_us): answer requests for so long, and wait for the next one until then or until the\n"
"descriptor `other` is readable. (0: there was none; 1: there were some; 2: the next one is for pyfuse3; how many)");
static PyObject *py_serve(PyObject *module, PyObject *args)
{
    int other, wait_ms, result = IDLE;
    unsigned int slice_us, spin_us, count = 0;
    const struct fuse_in_header *header;
    const char *body;
    uint64_t end;
    ssize_t length;

    if (!PyArg_ParseTuple(args, "iIiI", &other, &slice_us, &wait_ms, &spin_us))
        return NULL;
    end = clock_us() + slice_us;
    do {
        length = receive();
        if (length < 0 && errno == EAGAIN && wait_ms) {
            Py_BEGIN_ALLOW_THREADS
            length = await(other, wait_ms, spin_us);
            Py_END_ALLOW_THREADS
        }
        if (length < 0) {
            if (errno != EAGAIN && errno != EINTR)
                result = FOR_LIBFUSE; /* ENODEV: which shall meet it too */
            break;
        }
        count++;
        header = received.mem;
        body = (const char *)(header + 1);
        if (length < (ssize_t)sizeof *header || !is_hooked(header)) {
            received.size = length;
            result = FOR_LIBFUSE;
            break;
        }
        result = SERVED;
        if (call_hook(header, body, length - sizeof *header))
            break;
    } while (clock_us() < end);
    return Py_BuildValue("iI", result, count);
}

EXPORT int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
    ssize_t length;

    if (!resolve())
        abort();
    if (session_fd < 0)
        return libfuse.receive(se, buf); /* INIT */
    if (received.size) {
        free(buf->mem);
        buf->flags = 0;
        buf->mem = received.mem;
        buf->size = received.size;
        received.mem = NULL;
        received.size = 0;
        return (int)buf->size;
    }
    if (!buf->mem && posix_memalign(&buf->mem, 4096, buffer_size))
        return -ENOMEM;
    buf->flags = 0;
    for (;;) {
        length = read(session_fd, buf->mem, buffer_size);
        if (fuse_session_exited(se))
            return 0;
        if (length >= 0) {
            buf->size = length;
            return (int)length;
        }
        if (errno == ENODEV) {
            fuse_session_exit(se);
            return 0;
        }
        if (errno != ENOENT) /* which says that the request was interrupted; there may be another */
            return errno == EAGAIN ? -EINTR : -errno; /* pyfuse3 waits again on EINTR */
    }
}

PyDoc_STRVAR(configure_doc, "configure(flags, opcodes, hook): flags count before the session begins; whether libfuse was found.");
static PyObject *py_configure(PyObject *module, PyObject *args)
{
    unsigned long long flags, opcodes;
    PyObject *function;

    if (!PyArg_ParseTuple(args, "KKO", &flags, &opcodes, &function))
        return NULL;
    wanted = flags;
    hooked = opcodes;
    Py_INCREF(function);
    Py_XSETREF(hook, function);
    return PyBool_FromLong(resolve());
}

PyDoc_STRVAR(granted_doc, "granted(): the INIT flags that the kernel has taken from us; 0 if pyfuse3 does not call us.");
static PyObject *py_granted(PyObject *module, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(bound ? granted : 0);
}

PyDoc_STRVAR(fd_doc, "session_fd(): the descriptor of /dev/fuse, -1 before the session begins.");
static PyObject *py_session_fd(PyObject *module, PyObject *unused)
{
    return PyLong_FromLong(session_fd);
}

PyDoc_STRVAR(backing_open_doc,
"backing_open(fd, lacking): the kernel's number for a file that it may read and write by itself, in our name, but without\n"
"the capabilities in the mask `lacking` (those of the first 32).");
static PyObject *py_backing_open(PyObject *module, PyObject *args)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct ours[_LINUX_CAPABILITY_U32S_3], less[_LINUX_CAPABILITY_U32S_3];
    struct wire_backing_map map = { 0 };
    unsigned int lacking;
    int number, saved;

    if (!PyArg_ParseTuple(args, "iI", &map.fd, &lacking))
        return NULL;
    if (syscall(SYS_capget, &header, ours) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    memcpy(less, ours, sizeof less);
    less[0].effective &= ~lacking;
    if (syscall(SYS_capset, &header, less) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    number = ioctl(session_fd, WIRE_BACKING_OPEN, &map);
    saved = errno;
    if (syscall(SYS_capset, &header, ours) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    errno = saved;
    return number < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(number);
}

PyDoc_STRVAR(backing_close_doc, "backing_close(number): the kernel is done with it once nobody has the file open.");
static PyObject *py_backing_close(PyObject *module, PyObject *args)
{
    uint32_t number;

    if (!PyArg_ParseTuple(args, "I", &number))
        return NULL;
    if (ioctl(session_fd, WIRE_BACKING_CLOSE, &number) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_doc, "reply(unique, result): answer a request for which the hook has returned True.");
static PyObject *py_reply(PyObject *module, PyObject *args)
{
    unsigned long long unique;
    PyObject *result;

    if (!PyArg_ParseTuple(args, "KO", &unique, &result))
        return NULL;
    answer(unique, result);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    { "backing_close", py_backing_close, METH_VARARGS, backing_close_doc },
    { "backing_open", py_backing_open, METH_VARARGS, backing_open_doc },
    { "reply", py_reply, METH_VARARGS, reply_doc },
    { "serve", py_serve, METH_VARARGS, serve_doc },
    { "configure", py_configure, METH_VARARGS, configure_doc },
    { "granted", py_granted, METH_NOARGS, granted_doc },
    { "session_fd", py_session_fd, METH_NOARGS, fd_doc },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_wire", "What pyfuse3 cannot say to the kernel.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__wire(void)
{
    return PyModule_Create(&definition);
}
