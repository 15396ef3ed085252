/* Stands between a process and its C library, and counts, kills or refuses what it does to the files of one folder.

   Loaded by LD_PRELOAD. Nothing is counted before `faults_watch`; from then on each call that changes something below
   the folder is an event with a number from 1 on and one line in the log:

       NUMBER KIND BYTES PATH[ > PATH]

   BYTES are what a write is given, and what a file that is opened has and keeps. A sync of the folder above, which has
   the name of the watched one, is an event whose path is `..`.

   `faults_plan` says what is done at one event, or from one on. FILL is a disk that fills up: the first write takes a
   half, what comes later is refused. HALVE takes a half of each write, as a kernel may. Everything that the interpreter, SQLite, Arrow and
   Rust do to files goes through the functions below. Pages written through a memory map do not (SQLite's shared
   index, which it makes anew): no kill loses those. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { OPEN = 1, WRITE = 2, SYNC = 4, TRUNCATE = 8, RENAME = 16, UNLINK = 32, MKDIR = 64, LINK = 128, CHMOD = 256 };
enum action { COUNT, KILL_BEFORE, KILL_INSIDE, KILL_AFTER, FAIL, FILL, HALVE };

static char folder[PATH_MAX], removed[PATH_MAX];
static size_t folder_length;
static int log_file = -1;
static uint64_t events;

static int plan_action = COUNT, plan_error, plan_kinds;
static uint64_t plan_first = UINT64_MAX, plan_last = UINT64_MAX;
static uint64_t clock_from = UINT64_MAX;
static int64_t clock_offset_seconds;

/* Sets the folder whose events count, and the file that they are written to. */
void faults_watch(const char *watched, const char *log) {
	folder_length = strlen(watched);
	memcpy(folder, watched, folder_length + 1);
	int file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	log_file = fcntl(file, F_DUPFD_CLOEXEC, 900);
	syscall(SYS_close, file);
	events = 0;
}

/* Sets a folder that gets a link to each file before it loses a name, called as the event is numbered. */
void faults_keep(const char *where) {
	snprintf(removed, sizeof removed, "%s", where);
}

/* Does `action` at the events `first` to `last`, if they are of `kinds`. */
void faults_plan(int action, uint64_t first, uint64_t last, int error, int kinds) {
	plan_action = action, plan_first = first, plan_last = last, plan_error = error, plan_kinds = kinds;
}

/* Moves the wall clock by `seconds` once `event` has happened. */
void faults_clock(uint64_t event, int64_t seconds) {
	clock_from = event, clock_offset_seconds = seconds;
}

uint64_t faults_events(void) { return events; }

static void die(void) {
	syscall(SYS_kill, getpid(), SIGKILL);
	for (;;)
		pause();
}

/* Returns `path`, which may be relative to the folder `at`, as an absolute one, or NULL where it is not watched. */
static const char *watched_path(int at, const char *path, char *room) {
	if (folder_length == 0 || path == NULL)
		return NULL;
	if (path[0] != '/') {
		char link[64];
		ssize_t length;
		if (at == AT_FDCWD)
			memcpy(link, "/proc/self/cwd", sizeof "/proc/self/cwd");
		else
			snprintf(link, sizeof link, "/proc/self/fd/%d", at);
		length = readlink(link, room, PATH_MAX - 1);
		if (length < 0)
			return NULL;
		room[length] = '/';
		strncpy(room + length + 1, path, (size_t)(PATH_MAX - length - 2));
		room[PATH_MAX - 1] = '\0';
		path = room;
	}
	if (strncmp(path, folder, folder_length) != 0 || (path[folder_length] != '/' && path[folder_length] != '\0'))
		return NULL;
	return path[folder_length] == '/' ? path + folder_length + 1 : ".";
}

static const char *watched_file(int file, char *room) {
	char link[64];
	ssize_t length;
	if (folder_length == 0 || file < 0)
		return NULL;
	snprintf(link, sizeof link, "/proc/self/fd/%d", file);
	length = readlink(link, room, PATH_MAX - 1);
	if (length <= 0)
		return NULL;
	room[length] = '\0';
	return watched_path(AT_FDCWD, room, room);
}

/* The name of the run's folder is in the folder above it, so syncs of that count. */
static const char *synced_path(int file, char *room) {
	room[0] = '\0';
	const char *seen = watched_file(file, room);
	if (seen || folder_length == 0)
		return seen;
	size_t above = (size_t)(strrchr(folder, '/') - folder);
	return strlen(room) == above && strncmp(room, folder, above) == 0 ? ".." : NULL;
}

/* Fails where there is no such file, or where it is a folder: those need none. */
static void keep(uint64_t number, const char *path) {
	char from[2 * PATH_MAX + 2], to[PATH_MAX + 32];
	if (removed[0] == '\0' || path == NULL)
		return;
	snprintf(from, sizeof from, "%s/%s", folder, path);
	snprintf(to, sizeof to, "%s/%llu", removed, (unsigned long long)number);
	syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}

/* Counts an event; returns what is to be done at it. A kill before it never returns. */
static int begin(int kind, const char *name, uint64_t bytes, const char *path, const char *other) {
	int saved = errno;
	char line[2 * PATH_MAX + 64];
	uint64_t number = __atomic_add_fetch(&events, 1, __ATOMIC_SEQ_CST);
	int length = snprintf(line, sizeof line, "%llu %s %llu %s%s%s\n", (unsigned long long)number, name,
						  (unsigned long long)bytes, path, other ? " > " : "", other ? other : "");
	syscall(SYS_write, log_file, line, (size_t)length);
	if (kind == UNLINK || kind == RENAME)
		keep(number, kind == UNLINK ? path : other);
	errno = saved;
	if (number < plan_first || number > plan_last || !(kind & plan_kinds))
		return COUNT;
	if (plan_action == KILL_BEFORE)
		die();
	return plan_action == FILL && number > plan_first ? FAIL : plan_action;
}

static void end(int action) {
	if (action == KILL_AFTER || action == KILL_INSIDE)
		die();
}

static int refused(void) {
	errno = plan_error;
	return -1;
}

#define REAL(name) \
	static __typeof__(&name) real; \
	if (!real) \
		real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Calls that act at once: nothing can be seen of them half done. */
#define AT_ONCE(kind, word, path, other, call) \
	do { \
		const char *seen = path, *second = other; \
		if (!seen && !second) \
			return call; \
		int action = begin(kind, word, 0, seen ? seen : "-", second); \
		if (action == FAIL) \
			return refused(); \
		__typeof__(call) result = call; \
		end(action); \
		return result; \
	} while (0)

/* Calls that write bytes: a kill inside leaves a half, and so does a disk that is full from then on. */
#define WRITES(file, bytes, half, whole) \
	do { \
		char room[PATH_MAX]; \
		const char *seen = watched_file(file, room); \
		if (!seen) \
			return whole; \
		size_t all = bytes; \
		int action = begin(WRITE, "write", all, seen, NULL); \
		if (action == FAIL) \
			return refused(); \
		if ((action == FILL || action == HALVE) && all > 1) \
			return half; \
		if (action == KILL_INSIDE && all > 1) { \
			if (half >= 0) \
				die(); \
		} \
		ssize_t result = whole; \
		end(action); \
		return result; \
	} while (0)

ssize_t write(int file, const void *data, size_t size) {
	REAL(write);
	WRITES(file, size, real(file, data, size / 2), real(file, data, size));
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
	REAL(pwrite);
	WRITES(file, size, real(file, data, size / 2, at), real(file, data, size, at));
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
	REAL(pwrite64);
	WRITES(file, size, real(file, data, size / 2, at), real(file, data, size, at));
}

static size_t total(const struct iovec *parts, int count) {
	size_t bytes = 0;
	for (int i = 0; i < count; i++)
		bytes += parts[i].iov_len;
	return bytes;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
	REAL(writev);
	WRITES(file, total(parts, count), real(file, parts, (count + 1) / 2), real(file, parts, count));
}

ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at) {
	REAL(pwritev);
	WRITES(file, total(parts, count), real(file, parts, (count + 1) / 2, at), real(file, parts, count, at));
}

ssize_t pwritev64(int file, const struct iovec *parts, int count, off64_t at) {
	REAL(pwritev64);
	WRITES(file, total(parts, count), real(file, parts, (count + 1) / 2, at), real(file, parts, count, at));
}

ssize_t sendfile(int to, int from, off_t *at, size_t size) {
	static ssize_t (*real)(int, int, off_t *, size_t);
	if (!real)
		real = (ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile");
	WRITES(to, size, real(to, from, at, size / 2), real(to, from, at, size));
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
	static ssize_t (*real)(int, int, off64_t *, size_t);
	if (!real)
		real = (ssize_t(*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64");
	WRITES(to, size, real(to, from, at, size / 2), real(to, from, at, size));
}

ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
	REAL(copy_file_range);
	WRITES(to, size, real(from, a, to, b, size / 2, flags), real(from, a, to, b, size, flags));
}

/* The C library's own streams (NumPy saves arrays with them) reach the kernel past `write`: each block goes at once. */
size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
	REAL(fwrite);
	char room[PATH_MAX];
	const char *seen = watched_file(fileno(stream), room);
	if (!seen)
		return real(data, size, count, stream);
	int action = begin(WRITE, "write", size * count, seen, NULL);
	if (action == FAIL) {
		errno = plan_error;
		return 0;
	}
	size_t wanted = action == KILL_INSIDE || action == FILL ? count / 2 : count;
	size_t result = real(data, size, wanted, stream);
	fflush(stream);
	if (action == FILL)
		errno = plan_error;
	end(action);
	return result;
}

int fsync(int file) {
	REAL(fsync);
	char room[PATH_MAX];
	AT_ONCE(SYNC, "sync", synced_path(file, room), NULL, real(file));
}

int fdatasync(int file) {
	REAL(fdatasync);
	char room[PATH_MAX];
	AT_ONCE(SYNC, "sync", synced_path(file, room), NULL, real(file));
}

int ftruncate(int file, off_t size) {
	REAL(ftruncate);
	char room[PATH_MAX];
	AT_ONCE(TRUNCATE, "truncate", watched_file(file, room), NULL, real(file, size));
}

int ftruncate64(int file, off64_t size) {
	REAL(ftruncate64);
	char room[PATH_MAX];
	AT_ONCE(TRUNCATE, "truncate", watched_file(file, room), NULL, real(file, size));
}

int truncate(const char *path, off_t size) {
	REAL(truncate);
	char room[PATH_MAX];
	AT_ONCE(TRUNCATE, "truncate", watched_path(AT_FDCWD, path, room), NULL, real(path, size));
}

int truncate64(const char *path, off64_t size) {
	REAL(truncate64);
	char room[PATH_MAX];
	AT_ONCE(TRUNCATE, "truncate", watched_path(AT_FDCWD, path, room), NULL, real(path, size));
}

int fallocate(int file, int mode, off_t at, off_t size) {
	REAL(fallocate);
	char room[PATH_MAX];
	AT_ONCE(TRUNCATE, "truncate", watched_file(file, room), NULL, real(file, mode, at, size));
}

int fallocate64(int file, int mode, off64_t at, off64_t size) {
	REAL(fallocate64);
	char room[PATH_MAX];
	AT_ONCE(TRUNCATE, "truncate", watched_file(file, room), NULL, real(file, mode, at, size));
}

/* These two return the error and leave errno alone. */
int posix_fallocate(int file, off_t at, off_t size) {
	return fallocate(file, 0, at, size) == 0 ? 0 : errno;
}

int posix_fallocate64(int file, off64_t at, off64_t size) {
	return fallocate64(file, 0, at, size) == 0 ? 0 : errno;
}

int rename(const char *from, const char *to) {
	REAL(rename);
	char room[PATH_MAX], other[PATH_MAX];
	AT_ONCE(RENAME, "rename", watched_path(AT_FDCWD, from, room), watched_path(AT_FDCWD, to, other), real(from, to));
}

int renameat(int a, const char *from, int b, const char *to) {
	REAL(renameat);
	char room[PATH_MAX], other[PATH_MAX];
	AT_ONCE(RENAME, "rename", watched_path(a, from, room), watched_path(b, to, other), real(a, from, b, to));
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
	REAL(renameat2);
	char room[PATH_MAX], other[PATH_MAX];
	AT_ONCE(RENAME, "rename", watched_path(a, from, room), watched_path(b, to, other), real(a, from, b, to, flags));
}

int unlink(const char *path) {
	REAL(unlink);
	char room[PATH_MAX];
	AT_ONCE(UNLINK, "unlink", watched_path(AT_FDCWD, path, room), NULL, real(path));
}

int unlinkat(int at, const char *path, int flags) {
	REAL(unlinkat);
	char room[PATH_MAX];
	AT_ONCE(UNLINK, "unlink", watched_path(at, path, room), NULL, real(at, path, flags));
}

int remove(const char *path) {
	REAL(remove);
	char room[PATH_MAX];
	AT_ONCE(UNLINK, "unlink", watched_path(AT_FDCWD, path, room), NULL, real(path));
}

int rmdir(const char *path) {
	REAL(rmdir);
	char room[PATH_MAX];
	AT_ONCE(UNLINK, "unlink", watched_path(AT_FDCWD, path, room), NULL, real(path));
}

int mkdir(const char *path, mode_t mode) {
	REAL(mkdir);
	char room[PATH_MAX];
	AT_ONCE(MKDIR, "mkdir", watched_path(AT_FDCWD, path, room), NULL, real(path, mode));
}

int mkdirat(int at, const char *path, mode_t mode) {
	REAL(mkdirat);
	char room[PATH_MAX];
	AT_ONCE(MKDIR, "mkdir", watched_path(at, path, room), NULL, real(at, path, mode));
}

int link(const char *from, const char *to) {
	REAL(link);
	char room[PATH_MAX], other[PATH_MAX];
	AT_ONCE(LINK, "link", watched_path(AT_FDCWD, from, room), watched_path(AT_FDCWD, to, other), real(from, to));
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
	REAL(linkat);
	char room[PATH_MAX], other[PATH_MAX];
	AT_ONCE(LINK, "link", watched_path(a, from, room), watched_path(b, to, other), real(a, from, b, to, flags));
}

int symlink(const char *target, const char *path) {
	REAL(symlink);
	char room[PATH_MAX];
	AT_ONCE(LINK, "link", watched_path(AT_FDCWD, path, room), NULL, real(target, path));
}

int chmod(const char *path, mode_t mode) {
	REAL(chmod);
	char room[PATH_MAX];
	AT_ONCE(CHMOD, "chmod", watched_path(AT_FDCWD, path, room), NULL, real(path, mode));
}

int fchmod(int file, mode_t mode) {
	REAL(fchmod);
	char room[PATH_MAX];
	AT_ONCE(CHMOD, "chmod", watched_file(file, room), NULL, real(file, mode));
}

int fchmodat(int at, const char *path, mode_t mode, int flags) {
	REAL(fchmodat);
	char room[PATH_MAX];
	AT_ONCE(CHMOD, "chmod", watched_path(at, path, room), NULL, real(at, path, mode, flags));
}

/* A folder whose every change is refused says so when it is asked. */
static int may_write(int at, const char *path, int wanted) {
	char room[PATH_MAX];
	int refusing = plan_action == FAIL && (plan_kinds & OPEN) && plan_last == UINT64_MAX && events + 1 >= plan_first;
	return !(refusing && (wanted & W_OK) && watched_path(at, path, room));
}

int access(const char *path, int wanted) {
	REAL(access);
	return may_write(AT_FDCWD, path, wanted) ? real(path, wanted) : refused();
}

int faccessat(int at, const char *path, int wanted, int flags) {
	REAL(faccessat);
	return may_write(at, path, wanted) ? real(at, path, wanted, flags) : refused();
}

static const char *written_path(int at, const char *path, int flags, char *room) {
	int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
	return writes ? watched_path(at, path, room) : NULL;
}

static uint64_t bytes_left(const char *name, int flags) {
	char path[2 * PATH_MAX + 2];
	struct stat found;
	int saved = errno;
	snprintf(path, sizeof path, "%s/%s", folder, name);
	uint64_t bytes = (flags & O_TRUNC) || stat(path, &found) != 0 ? 0 : (uint64_t)found.st_size;
	errno = saved;
	return bytes;
}

#define OPENS(at, path, flags, call) \
	do { \
		char room[PATH_MAX]; \
		const char *seen = written_path(at, path, flags, room); \
		if (!seen) \
			return call; \
		int action = begin(OPEN, "open", bytes_left(seen, flags), seen, NULL); \
		if (action == FAIL) \
			return refused(); \
		int result = call; \
		end(action); \
		return result; \
	} while (0)

static mode_t mode_of(int flags, va_list rest) {
	return flags & (O_CREAT | O_TMPFILE) ? (mode_t)va_arg(rest, int) : 0;
}

#define MODE \
	va_list rest; \
	va_start(rest, flags); \
	mode_t mode = mode_of(flags, rest); \
	va_end(rest)

int open(const char *path, int flags, ...) {
	REAL(open);
	MODE;
	OPENS(AT_FDCWD, path, flags, real(path, flags, mode));
}

int open64(const char *path, int flags, ...) {
	REAL(open64);
	MODE;
	OPENS(AT_FDCWD, path, flags, real(path, flags, mode));
}

int openat(int at, const char *path, int flags, ...) {
	REAL(openat);
	MODE;
	OPENS(at, path, flags, real(at, path, flags, mode));
}

int openat64(int at, const char *path, int flags, ...) {
	REAL(openat64);
	MODE;
	OPENS(at, path, flags, real(at, path, flags, mode));
}

/* What a fortified build calls in place of those four where no mode is given. */
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int at, const char *path, int flags) { return openat(at, path, flags); }
int __openat64_2(int at, const char *path, int flags) { return openat64(at, path, flags); }

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

#define OPENS_STREAM(call) \
	do { \
		char room[PATH_MAX]; \
		const char *seen = strpbrk(how, "wa+") ? watched_path(AT_FDCWD, path, room) : NULL; \
		int flags = strchr(how, 'w') ? O_TRUNC : 0; \
		int action = seen ? begin(OPEN, "open", bytes_left(seen, flags), seen, NULL) : COUNT; \
		if (action == FAIL) { \
			errno = plan_error; \
			return NULL; \
		} \
		FILE *stream = call; \
		end(action); \
		return stream; \
	} while (0)

FILE *fopen(const char *path, const char *how) {
	REAL(fopen);
	OPENS_STREAM(real(path, how));
}

FILE *fopen64(const char *path, const char *how) {
	REAL(fopen64);
	OPENS_STREAM(real(path, how));
}

static int64_t clock_shift(void) { return events >= clock_from ? clock_offset_seconds : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
	REAL(clock_gettime);
	int result = real(clock, now);
	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += clock_shift();
	return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
	REAL(gettimeofday);
	int result = real(now, zone);
	if (result == 0)
		now->tv_sec += clock_shift();
	return result;
}

time_t time(time_t *room) {
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (room)
		*room = now.tv_sec;
	return now.tv_sec;
}
