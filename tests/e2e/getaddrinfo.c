/* getaddrinfo of each argument, any family: one line a name, its addresses sorted or the error.
 * Built against musl, whose resolver asks for A and AAAA at once and of every nameserver, and reads
 * resolv.conf by itself. */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { MOST = 32 };

static int compare(const void *a, const void *b)
{
	return strcmp(a, b);
}

static void look_up(const char *name)
{
	struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM }, *found, *each;
	char shown[MOST][NI_MAXHOST];
	size_t count = 0;
	int error = getaddrinfo(name, NULL, &hints, &found);

	if (error) {
		printf("%s: %s\n", name, gai_strerror(error));
		return;
	}
	for (each = found; each && count < MOST; each = each->ai_next)
		if (!getnameinfo(each->ai_addr, each->ai_addrlen, shown[count], NI_MAXHOST, NULL, 0,
				 NI_NUMERICHOST))
			count++;
	freeaddrinfo(found);
	qsort(shown, count, NI_MAXHOST, compare);
	printf("%s:", name);
	for (size_t i = 0; i < count; i++)
		printf(" %s", shown[i]);
	putchar('\n');
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		look_up(argv[i]);
	return 0;
}
