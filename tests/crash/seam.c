/*
 * The seam under a program: preloaded (LD_PRELOAD), it shows every system call that changes files below one
 * directory to a hook, before and after it is made, LMDB's included.  The hook may let a call fail.
 *
 * `seam_begin(root, hook)` from the program itself (ctypes) sets both.  In processes that it starts there is no hook;
 * there the environment may name one call that is to fail: SEAM="ROOT KIND NUMBER ERRNO", with KIND a letter of
 * KINDS or "*".  A fault once met is noted in the file SEAM_MET, if that is named.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Letters, as the hook sees them: write, sync, rename, unlink, open, map, allocate, truncate, directory made or removed. */

typedef int (*hook_type)(int kind, int after, int fd, const char *path, long long offset, long long size);

static hook_type hook;
static char root[PATH_MAX];
static size_t root_length;
static char wanted_kind;
static long wanted_number = -1;
static int wanted_errno;
static atomic_long counted;
static __thread int inside; /* The hook's own calls are not shown to it. */

void seam_begin(const char *directory, hook_type given) {
    hook = NULL;
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
    hook = given;
}

void seam_end(void) { hook = NULL; }

__attribute__((constructor)) static void from_environment(void) {
    const char *text = getenv("SEAM");
    if (text && sscanf(text, "%4000s %c %ld %d", root, &wanted_kind, &wanted_number, &wanted_errno) == 4)
        root_length = strlen(root);
    else
        root[0] = 0;
}

static int below(const char *path) {
    return root_length && !inside && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

static int path_of(int fd, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(name, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return 1;
}

static void met(char kind, const char *path) {
    const char *name = getenv("SEAM_MET");
    if (!name) return;
    FILE *file = fopen(name, "a");
    if (file) {
        fprintf(file, "%c %s\n", kind, path);
        fclose(file);
    }
}

static int before(char kind, int fd, const char *path, long long offset, long long size) {
    if (hook) {
        inside++;
        int refused = hook(kind, 0, fd, path, offset, size);
        inside--;
        return refused;
    }
    if (wanted_number >= 0 && (wanted_kind == '*' || wanted_kind == kind) &&
        atomic_fetch_add(&counted, 1) == wanted_number) {
        met(kind, path);
        return wanted_errno;
    }
    return 0;
}

static void after(char kind, int fd, const char *path, long long offset, long long size) {
    int saved = errno;
    if (hook) {
        inside++;
        hook(kind, 1, fd, path, offset, size);
        inside--;
    }
    errno = saved;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);

/* A call on an open file. */
#define ON_FD(kind, fd, offset, size, failed, call) \
    char path[PATH_MAX]; \
    if (!root_length || !path_of(fd, path) || !below(path)) return call; \
    int refused = before(kind, fd, path, offset, size); \
    if (refused) { \
        errno = refused; \
        return failed; \
    } \
    __auto_type result = call; \
    if (result != (__typeof__(result))-1) after(kind, fd, path, offset, size); \
    return result

/* A call on a path; relative ones are not looked at. */
#define ON_PATH(kind, name, call) \
    if (!below(name)) return call; \
    int refused = before(kind, -1, name, 0, 0); \
    if (refused) { \
        errno = refused; \
        return -1; \
    } \
    __auto_type result = call; \
    if (result != -1) after(kind, -1, name, 0, 0); \
    return result

ssize_t write(int fd, const void *data, size_t size) { REAL(write) ON_FD('w', fd, -1, size, -1, real(fd, data, size)); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite) ON_FD('w', fd, at, size, -1, real(fd, data, size, at));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64) ON_FD('w', fd, at, size, -1, real(fd, data, size, at));
}
static long long total(const struct iovec *parts, int count) {
    long long size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    return size;
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev) ON_FD('w', fd, -1, total(parts, count), -1, real(fd, parts, count));
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    REAL(pwritev) ON_FD('w', fd, at, total(parts, count), -1, real(fd, parts, count, at));
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    REAL(pwritev64) ON_FD('w', fd, at, total(parts, count), -1, real(fd, parts, count, at));
}
int fsync(int fd) { REAL(fsync) ON_FD('s', fd, 0, 0, -1, real(fd)); }
int fdatasync(int fd) { REAL(fdatasync) ON_FD('s', fd, 0, 0, -1, real(fd)); }
int ftruncate(int fd, off_t size) { REAL(ftruncate) ON_FD('t', fd, 0, size, -1, real(fd, size)); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64) ON_FD('t', fd, 0, size, -1, real(fd, size)); }
void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t at) {
    REAL(mmap)
    if (fd < 0) return real(address, size, protection, flags, fd, at);
    ON_FD('m', fd, at, size, MAP_FAILED, real(address, size, protection, flags, fd, at));
}
void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t at) {
    REAL(mmap64)
    if (fd < 0) return real(address, size, protection, flags, fd, at);
    ON_FD('m', fd, at, size, MAP_FAILED, real(address, size, protection, flags, fd, at));
}

/* This one returns its error. */
static int allocated(int fd, off64_t at, off64_t size, int (*real)(int, off64_t, off64_t)) {
    char path[PATH_MAX];
    if (!root_length || !path_of(fd, path) || !below(path)) return real(fd, at, size);
    int refused = before('a', fd, path, at, size);
    if (refused) return refused;
    int result = real(fd, at, size);
    if (!result) after('a', fd, path, at, size);
    return result;
}
int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(posix_fallocate)
    return allocated(fd, at, size, (int (*)(int, off64_t, off64_t))real);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL(posix_fallocate64)
    return allocated(fd, at, size, real);
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
int open(const char *name, int flags, ...) {
    REAL(open) MODE_OF(flags) ON_PATH('o', name, real(name, flags, mode));
}
int open64(const char *name, int flags, ...) {
    REAL(open64) MODE_OF(flags) ON_PATH('o', name, real(name, flags, mode));
}
int truncate(const char *name, off_t size) { REAL(truncate) ON_PATH('t', name, real(name, size)); }
int truncate64(const char *name, off64_t size) { REAL(truncate64) ON_PATH('t', name, real(name, size)); }
int unlink(const char *name) { REAL(unlink) ON_PATH('u', name, real(name)); }
int mkdir(const char *name, mode_t mode) {
    REAL(mkdir)
    if (access(name, F_OK) == 0) return real(name, mode); /* Says so, on the worst of disks. */
    ON_PATH('d', name, real(name, mode));
}
int rmdir(const char *name) { REAL(rmdir) ON_PATH('d', name, real(name)); }
int rename(const char *name, const char *fresh) { REAL(rename) ON_PATH('r', name, real(name, fresh)); }
int unlinkat(int folder, const char *name, int flags) {
    REAL(unlinkat)
    char path[2 * PATH_MAX];
    if (name[0] == '/') {
        ON_PATH('u', name, real(folder, name, flags));
    }
    if (!root_length || !path_of(folder, path)) return real(folder, name, flags);
    strcat(path, "/");
    strncat(path, name, PATH_MAX - 1);
    ON_PATH('u', path, real(folder, name, flags));
}
