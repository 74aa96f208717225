/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's first process, out of the initramfs: load the modules that lead to this machine's files, mount them
 * read-only below a layer in memory that takes what is written, and go on with the program named on the kernel's
 * command line (plexus.init=). Whatever fails is said on the console; the kernel then ends (panic=-1). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TEXT_MAX 4096 /* bytes of a path or of the kernel's command line */

static void end(const char *what)
{
	printf("guest: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags,
                       const char *options)
{
	if (mount(source, target, type, flags, options))
		end(target);
}

/* /modules names one file a line, in the order in which they need each other. */
static void load_modules(void)
{
	char path[TEXT_MAX];
	FILE *list = fopen("/modules", "r");

	if (!list)
		end("/modules");
	while (fgets(path, sizeof(path), list)) {
		int file;

		path[strcspn(path, "\n")] = 0;
		file = open(path, O_RDONLY | O_CLOEXEC);
		if (file < 0 || (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST))
			end(path);
		close(file);
	}
	fclose(list);
}

/* The value of `name` (with its "=") on the kernel's command line; it holds no spaces. */
static char *setting(const char *name)
{
	static char line[TEXT_MAX];
	FILE *file = fopen("/proc/cmdline", "r");
	char *found;

	if (!file || !fgets(line, sizeof(line), file))
		end("/proc/cmdline");
	fclose(file);
	found = strstr(line, name);
	if (!found) {
		errno = ENOENT;
		end(name);
	}
	found += strlen(name);
	found[strcspn(found, " \n")] = 0;
	return found;
}

int main(void)
{
	char *program;

	setvbuf(stdout, NULL, _IONBF, 0);
	must_mount("proc", "/proc", "proc", 0, NULL);
	program = setting("plexus.init=");
	load_modules();
	must_mount("machine", "/lower", "9p", MS_RDONLY, "trans=virtio,version=9p2000.L,msize=512000,cache=loose");
	must_mount("tmpfs", "/upper", "tmpfs", 0, "size=75%");
	if (mkdir("/upper/files", 0755) || mkdir("/upper/work", 0755))
		end("/upper");
	must_mount("overlay", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work");
	must_mount("proc", "/root/proc", "proc", 0, NULL);
	if (chdir("/root"))
		end("/root");
	must_mount(".", "/", NULL, MS_MOVE, NULL);
	if (chroot(".") || chdir("/"))
		end("chroot");
	execl(program, program, (char *)NULL);
	end(program);
}
