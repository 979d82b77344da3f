"""The "operating system" of a demo machine: one boot sector that says what it is, fills some RAM and sleeps."""

from __future__ import annotations

READY_ADDRESS = 0x500
"""Physical address (free for use after boot, by the BIOS data area) where the guest puts `READY` when it is done."""
READY = 0x70616E73
FILL_FROM = 0x100000
"""The first byte of the RAM that is filled: 1 MiB, where a PC's extended memory begins."""

SECTOR = 512
_ORIGIN = 0x7C00
_SEED_AT, _COUNT_AT, _TEXT_AT = 0x36, 0x42, 0x7E

# Assembled from the comments (GNU as, .code16); 80386 real mode, the BIOS loads and enters it at 0x7c00.
_PROGRAM = bytes.fromhex(
    "fa fc"  # cli; cld
    "31c0 8ed8 8ed0 bc007c"  # ds = ss = 0; sp = 0x7c00
    "be7e7c"  # mov $text, %si
    "ac 84c0 7409"  # next: lodsb; test %al, %al; jz done
    "b40e bb0700 cd10"  # BIOS: print the character in %al
    "ebf2"  # jmp next
    "fa"  # done: cli
    "0f0116687c"  # lgdt (gdt_register)
    "0f20c0 0c01 0f22c0"  # into protected mode ...
    "bb0800 8ec3"  # ... give %es a limit of 4 GiB ...
    "24fe 0f22c0"  # ... and back: "unreal mode"
    "66b800000000"  # mov $SEED, %eax
    "66bf00001000"  # mov $0x100000, %edi
    "66b900000000"  # mov $COUNT, %ecx
    "6669c00d661900 66055ff36e3c"  # fill: %eax = %eax * 1664525 + 1013904223 (Numerical Recipes' generator)
    "6766ab 6649 75ec"  # stosl %eax, %es:(%edi); dec %ecx; jnz fill
    "66c7060005736e6170"  # movl $READY, 0x500
    "fa f4 ebfc"  # sleep: cli; hlt; jmp sleep
    "90"
    "0f006e7c0000"  # gdt_register: 16 bytes at gdt
    "0000000000000000 ffff00000092cf00"  # gdt: null; data, 0 to 4 GiB, writable
)
assert len(_PROGRAM) == _TEXT_AT, "the offsets above belong to this program"


def boot_sector(text: str, *, seed: int, fill: int) -> bytes:
    """The first 512 bytes of a disk: prints `text` (ASCII, lines ending in newline), fills `fill` bytes of RAM.

    The fill does not compress and differs by `seed`, so saved memory takes the space that it would with a real guest.
    """
    message = text.replace("\n", "\r\n").encode("ascii")
    program = bytearray(_PROGRAM)
    program[_SEED_AT : _SEED_AT + 4] = (seed & 0xFFFFFFFF).to_bytes(4, "little")
    program[_COUNT_AT : _COUNT_AT + 4] = (fill // 4).to_bytes(4, "little")
    sector = bytes(program) + message + b"\0"
    room = SECTOR - 2
    if len(sector) > room or fill < 4:
        raise ValueError(f"the text must fit in {room - _TEXT_AT} bytes and at least 4 bytes be filled")
    return sector.ljust(room, b"\0") + b"\x55\xaa"
