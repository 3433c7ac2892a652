/* What pyfuse3 cannot say to the kernel, said on the wire between libfuse and /dev/fuse.
 *
 * An ordinary extension module that is imported with RTLD_GLOBAL before pyfuse3, so that the functions of libfuse which
 * it defines are the ones that pyfuse3 calls:
 *
 *   fuse_session_process_buf  sees each request before libfuse; answers INIT with more flags; hands the requests that
 *                             pyfuse3 does not have to a Python function
 *   fuse_session_receive_buf  reads without blocking: a client that is killed takes its request along, and a blocking
 *                             read would then keep the interpreter's lock
 *   fuse_reply_open           adds open flags, which Python passes in the upper bits of the file handle
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
#include <linux/fuse.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* In the upper bits of a file handle that Python returns from opendir or open. Handles themselves are below 2^32. */
#define HANDLE_CACHE_DIR (1ULL << 62)

/* linux/fuse.h of the build may be older than the kernel. */
#define WIRE_INIT_EXT (1ULL << 30)
#define WIRE_WRITE_KILL_SUIDGID (1 << 2)
#define WIRE_FATTR_KILL_SUIDGID (1 << 11)
#define WIRE_FATTR_ATIME_NOW (1 << 7)
#define WIRE_OPEN_KILL_SUIDGID (1 << 0)

static struct {
    void (*process)(struct fuse_session *, const struct fuse_buf *);
    int (*receive)(struct fuse_session *, struct fuse_buf *);
    int (*open)(fuse_req_t, const struct fuse_file_info *);
} libfuse;

static uint64_t wanted, offered, granted; /* INIT flags, both words of them */
static int session_fd = -1;
static int bound;           /* libfuse's functions are found, and pyfuse3 does call ours */
static int kill_suidgid;    /* the request being handled says that setuid and setgid must go */
static int times_are_now;   /* it sets times to the time that it is */
static size_t buffer_size = (1 << 20) + 4096;
static uint64_t hooked;     /* bit n: requests with opcode n go to the hook */
static PyObject *hook;

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
    libfuse.open = dlsym(handle, "fuse_reply_open");
    if (!libfuse.receive || !libfuse.open)
        return 0;
    libfuse.process = dlsym(handle, "fuse_session_process_buf");
    return libfuse.process != NULL;
}

static void reply_error(uint64_t unique, int error)
{
    struct fuse_out_header header = { sizeof header, -error, unique };

    if (write(session_fd, &header, sizeof header) < 0)
        return; /* ENOENT: the request was interrupted */
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
        if (flags >> 32)
            flags |= WIRE_INIT_EXT;
        answer.out.flags = (uint32_t)flags;
        answer.out.flags2 = (uint32_t)(flags >> 32);
        buffer_size = (answer.out.max_write > 131072 ? answer.out.max_write : 131072) + 4096;
        fcntl(session_fd, F_SETFL, fcntl(session_fd, F_GETFL) | O_NONBLOCK);
    }
    if (write(session_fd, &answer, length) < 0)
        perror("pyunion: INIT");
}

/* What pyfuse3 does not pass on of a request that it knows. */
static void note_flags(const struct fuse_in_header *header, const char *body, size_t size)
{
    kill_suidgid = times_are_now = 0;
    if (header->opcode == FUSE_WRITE && size >= sizeof(struct fuse_write_in))
        kill_suidgid = ((const struct fuse_write_in *)body)->write_flags & WIRE_WRITE_KILL_SUIDGID;
    else if (header->opcode == FUSE_SETATTR && size >= sizeof(struct fuse_setattr_in)) {
        kill_suidgid = ((const struct fuse_setattr_in *)body)->valid & WIRE_FATTR_KILL_SUIDGID;
        times_are_now = ((const struct fuse_setattr_in *)body)->valid & WIRE_FATTR_ATIME_NOW;
    } else if (header->opcode == FUSE_OPEN && size >= sizeof(struct fuse_open_in))
        kill_suidgid = ((const struct fuse_open_in *)body)->open_flags & WIRE_OPEN_KILL_SUIDGID;
}

static int taken_by_hook(const struct fuse_in_header *header, const char *body, size_t size)
{
    PyObject *result;
    int taken;

    if (header->opcode >= 64 || !hook || !(hooked >> header->opcode & 1))
        return 0;
    result = PyObject_CallFunction(hook, "IKKIIIy#", header->opcode, (unsigned long long)header->unique,
                                   (unsigned long long)header->nodeid, header->uid, header->gid, header->pid,
                                   body, (Py_ssize_t)size);
    if (!result) {
        PyErr_WriteUnraisable(hook);
        reply_error(header->unique, EIO);
        return 1;
    }
    taken = PyObject_IsTrue(result);
    Py_DECREF(result);
    return taken;
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
        return;
    }
    note_flags(header, body, size);
    if (!taken_by_hook(header, body, size))
        libfuse.process(se, buf);
}

EXPORT int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
    ssize_t length;

    if (!resolve())
        abort();
    if (session_fd < 0)
        return libfuse.receive(se, buf); /* INIT */
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

EXPORT int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *info)
{
    struct fuse_open_out out;

    if (!resolve())
        abort();
    if (!(info->fh & HANDLE_CACHE_DIR))
        return libfuse.open(req, info);
    memset(&out, 0, sizeof out);
    out.fh = info->fh & ~HANDLE_CACHE_DIR;
    out.open_flags = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
    return fuse_reply_buf(req, (const char *)&out, sizeof out);
}

PyDoc_STRVAR(configure_doc, "configure(flags, opcodes, hook): before the session begins; whether libfuse was found.");
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

PyDoc_STRVAR(kill_doc, "kill_suidgid(): whether the request being handled says that setuid and setgid must go.");
static PyObject *py_kill_suidgid(PyObject *module, PyObject *unused)
{
    return PyBool_FromLong(kill_suidgid);
}

PyDoc_STRVAR(now_doc, "times_are_now(): whether the request being handled sets times to the time that it is.");
static PyObject *py_times_are_now(PyObject *module, PyObject *unused)
{
    return PyBool_FromLong(times_are_now);
}

PyDoc_STRVAR(fd_doc, "session_fd(): the descriptor of /dev/fuse, -1 before the session begins.");
static PyObject *py_session_fd(PyObject *module, PyObject *unused)
{
    return PyLong_FromLong(session_fd);
}

static PyMethodDef methods[] = {
    { "configure", py_configure, METH_VARARGS, configure_doc },
    { "granted", py_granted, METH_NOARGS, granted_doc },
    { "session_fd", py_session_fd, METH_NOARGS, fd_doc },
    { "kill_suidgid", py_kill_suidgid, METH_NOARGS, kill_doc },
    { "times_are_now", py_times_are_now, METH_NOARGS, now_doc },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_wire", "What pyfuse3 cannot say to the kernel.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__wire(void)
{
    return PyModule_Create(&definition);
}
