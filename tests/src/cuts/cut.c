/* Loaded before the C library into a program under test: ends it at the CUT_AT-th call that changes something below
   CUT_FOLDER, before the call. Children begin with an empty environment, so only the program itself is cut.

   With CUT_DISK, a folder, it also keeps what a disk would hold when the power fails: the content that each file had when
   it was last synced, by inode number. What was never synced is not there. With CUT_FORGETFUL syncing keeps nothing, as on
   a program that does not sync.

   Files are never really synced: only what is in CUT_DISK survives a power cut here, and nothing else is tested. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *folder, *disk;
static long at;
static int forgetful;
static atomic_long calls;
static pthread_mutex_t keeping = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *number = getenv("CUT_AT");
    folder = getenv("CUT_FOLDER");
    disk = getenv("CUT_DISK");
    forgetful = getenv("CUT_FORGETFUL") != NULL;
    at = number ? atol(number) : 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int ours(const char *path) {
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

/* The path of an open file; empty if it has none. */
static void path_of(int fd, char *path, size_t size) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, size - 1);
    path[n < 0 ? 0 : n] = 0;
}

static int ours_open(int fd) {
    char path[4096];
    path_of(fd, path, sizeof path);
    return ours(path);
}

static void cut_point(void) {
    if (atomic_fetch_add(&calls, 1) + 1 == at) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

/* Where the disk keeps a file. */
static void place(char *path, size_t size, ino_t inode, const char *suffix) {
    snprintf(path, size, "%s/%lu%s", disk, (unsigned long)inode, suffix);
}

static int sync_file(int fd) {
    struct stat about;
    if (!disk || forgetful || fstat(fd, &about) || !S_ISREG(about.st_mode)) return 0;
    char link[32], fresh[4096], kept[4096], block[65536];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    place(fresh, sizeof fresh, about.st_ino, ".new");
    place(kept, sizeof kept, about.st_ino, "");
    pthread_mutex_lock(&keeping);
    int from = REAL(open64)(link, O_RDONLY | O_CLOEXEC);
    int to = REAL(open64)(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t n = -1;
    while (from >= 0 && to >= 0 && (n = read(from, block, sizeof block)) > 0)
        if (REAL(write)(to, block, n) != n) abort();
    if (n != 0) abort();
    close(from);
    close(to);
    REAL(rename)(fresh, kept);
    pthread_mutex_unlock(&keeping);
    return 0;
}

/* A file that is gone: its inode number may come back as another's. */
static void forget(const char *path) {
    struct stat about;
    char kept[4096];
    if (!disk || lstat(path, &about)) return;
    place(kept, sizeof kept, about.st_ino, "");
    REAL(unlink)(kept);
}

static int changes(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

#define OPEN(name)                                          \
    int name(const char *path, int flags, ...) {            \
        va_list more;                                       \
        va_start(more, flags);                              \
        mode_t mode = va_arg(more, mode_t);                 \
        va_end(more);                                       \
        if (changes(flags) && ours(path)) cut_point();      \
        return REAL(name)(path, flags, mode);               \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *from, size_t n) {
    if (ours_open(fd)) cut_point();
    return REAL(write)(fd, from, n);
}

ssize_t writev(int fd, const struct iovec *from, int n) {
    if (ours_open(fd)) cut_point();
    return REAL(writev)(fd, from, n);
}

ssize_t pwrite64(int fd, const void *from, size_t n, off64_t offset) {
    if (ours_open(fd)) cut_point();
    return REAL(pwrite64)(fd, from, n, offset);
}

int ftruncate64(int fd, off64_t length) {
    if (ours_open(fd)) cut_point();
    return REAL(ftruncate64)(fd, length);
}

int fsync(int fd) {
    if (!ours_open(fd)) return REAL(fsync)(fd);
    cut_point();
    return sync_file(fd);
}

int fdatasync(int fd) {
    if (!ours_open(fd)) return REAL(fdatasync)(fd);
    cut_point();
    return sync_file(fd);
}

int rename(const char *from, const char *to) {
    if (ours(to)) {
        cut_point();
        forget(to);
    }
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    if (ours(path)) {
        cut_point();
        forget(path);
    }
    return REAL(unlink)(path);
}

int unlinkat(int in, const char *name, int flags) {
    char folder_of[4096], path[8192];
    path_of(in, folder_of, sizeof folder_of);
    snprintf(path, sizeof path, "%s/%s", folder_of, name);
    const char *named = *name == '/' ? name : path;
    if (ours(named)) {
        cut_point();
        if (!(flags & AT_REMOVEDIR)) forget(named);
    }
    return REAL(unlinkat)(in, name, flags);
}

int rmdir(const char *path) {
    if (ours(path)) cut_point();
    return REAL(rmdir)(path);
}

int chmod(const char *path, mode_t mode) {
    if (ours(path)) cut_point();
    return REAL(chmod)(path, mode);
}

int fchmod(int fd, mode_t mode) {
    if (ours_open(fd)) cut_point();
    return REAL(fchmod)(fd, mode);
}

int mkdir(const char *path, mode_t mode) {
    if (ours(path)) cut_point();
    return REAL(mkdir)(path, mode);
}
