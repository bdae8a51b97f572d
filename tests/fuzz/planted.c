/* A bug behind eight bytes that chance does not find: whoever is guided by the coverage of compiled code
 * does within seconds. Says whether the whole arrangement works, compiler flags and all. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

void planted(const uint8_t *data, size_t size) {
    if (size < 9)
        return;
    uint32_t magic = (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
    if (magic != 0x7A3C91E5)
        return;
    if (data[4] == 'b')
        if (data[5] == 'u')
            if (data[6] == 'g') {
                volatile char *room = malloc(4);
                if (room != NULL)
                    room[4 + data[7]] = 1;
                free((void *)room);
            }
}
