/* Loops over system calls. Written in Python, the loop would cost more than the file system.

   usage: loops COMMAND ARGUMENTS; a LIST is a file with one path on each line. The first error ends it. */

#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096 };
static volatile uint64_t sink; /* what is read is used */

static int open_or_die(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0) err(1, "open %s", path);
    return fd;
}

static void close_or_die(int fd) {
    if (close(fd)) err(1, "close");
}

static off_t size_of(int fd) {
    struct stat st;
    if (fstat(fd, &st)) err(1, "fstat");
    return st.st_size;
}

static void append_byte(const char *path) {
    int fd = open_or_die(path, O_WRONLY | O_APPEND);
    if (write(fd, "x", 1) != 1) err(1, "write %s", path);
    close_or_die(fd);
}

static void chmod_private(const char *path) {
    if (chmod(path, 0600)) err(1, "chmod %s", path);
}

static void open_close(const char *path) { close_or_die(open_or_die(path, O_RDONLY)); }

static void stat_present(const char *path) {
    struct stat st;
    if (lstat(path, &st)) err(1, "stat %s", path);
}

static void stat_absent(const char *path) {
    struct stat st;
    if (lstat(path, &st) == 0) errx(1, "%s exists", path);
    if (errno != ENOENT) err(1, "stat %s", path);
}

static void for_each(const char *list, int times, void (*act)(const char *)) {
    char *text, *line;
    int fd = open_or_die(list, O_RDONLY);
    size_t size = size_of(fd);
    if (!(text = malloc(size + 1)) || read(fd, text, size) != (ssize_t)size) err(1, "read %s", list);
    text[size] = 0;
    close_or_die(fd);
    for (line = text; *line; line += strlen(line) + 1) *strchrnul(line, '\n') = 0;
    while (times--)
        for (line = text; line < text + size; line += strlen(line) + 1) act(line);
}

static void create_unlink(int count) {
    char name[32];
    for (int number = 0; number < count; number++) {
        snprintf(name, sizeof name, "new%d", number);
        close_or_die(open_or_die(name, O_WRONLY | O_CREAT | O_EXCL));
        if (unlink(name)) err(1, "unlink %s", name);
    }
}

static char *block_of(size_t size) {
    char *block = aligned_alloc(PAGE, size);
    if (!block) err(1, "memory");
    memset(block, 'b', size);
    return block;
}

static void read_all(const char *path, size_t size) {
    char *block = block_of(size);
    int fd = open_or_die(path, O_RDONLY);
    ssize_t got;
    while ((got = read(fd, block, size)) > 0) sink += block[0];
    if (got < 0) err(1, "read %s", path);
    close_or_die(fd);
}

static void read_random(const char *path, int count) {
    char *block = block_of(PAGE);
    int fd = open_or_die(path, O_RDONLY);
    uint64_t pages = size_of(fd) / PAGE, state = 88172645463325252u; /* the same places each time */
    while (count--) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        if (pread(fd, block, PAGE, (off_t)(state % pages) * PAGE) != PAGE) err(1, "pread %s", path);
        sink += block[0];
    }
    close_or_die(fd);
}

static void read_mapped(const char *path) {
    int fd = open_or_die(path, O_RDONLY);
    off_t size = size_of(fd);
    uint64_t *data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0), sum = 0;
    if (data == MAP_FAILED) err(1, "mmap %s", path);
    for (off_t at = 0; at < size / 8; at++) sum += data[at];
    sink += sum;
    if (munmap(data, size)) err(1, "munmap");
    close_or_die(fd);
}

static void write_new(const char *path, size_t size, int count) {
    char *block = block_of(size);
    int fd = open_or_die(path, O_WRONLY | O_CREAT | O_EXCL);
    while (count--)
        if (write(fd, block, size) != (ssize_t)size) err(1, "write %s", path);
    close_or_die(fd);
}

static void write_byte(const char *path) {
    int fd = open_or_die(path, O_WRONLY);
    if (pwrite(fd, "x", 1, 0) != 1) err(1, "pwrite %s", path);
    close_or_die(fd);
}

int main(int argc, char **argv) {
    const char *command = argc > 2 ? argv[1] : "", *first = argc > 2 ? argv[2] : "";
    int second = argc > 3 ? atoi(argv[3]) : 1, third = argc > 4 ? atoi(argv[4]) : 1;
    if (!strcmp(command, "append")) for_each(first, 1, append_byte);               /* LIST */
    else if (!strcmp(command, "chmod")) for_each(first, 1, chmod_private);         /* LIST */
    else if (!strcmp(command, "open")) for_each(first, second, open_close);        /* LIST TIMES */
    else if (!strcmp(command, "stat")) for_each(first, second, stat_present);      /* LIST TIMES */
    else if (!strcmp(command, "absent")) for_each(first, second, stat_absent);     /* LIST TIMES */
    else if (!strcmp(command, "create")) create_unlink(atoi(first));               /* COUNT */
    else if (!strcmp(command, "read")) read_all(first, second);                    /* FILE BLOCK */
    else if (!strcmp(command, "random")) read_random(first, second);               /* FILE COUNT */
    else if (!strcmp(command, "mmap")) read_mapped(first);                         /* FILE */
    else if (!strcmp(command, "write")) write_new(first, second, third);           /* FILE BLOCK COUNT */
    else if (!strcmp(command, "byte")) write_byte(first);                          /* FILE */
    else errx(2, "no such command: %s", command);
    return 0;
}
