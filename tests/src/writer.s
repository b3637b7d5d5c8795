# A guest of one sector: writes to two disks by turns, a step after the other, for ever. The BIOS loads it from
# a third disk, the first one in its order; tests/src/writer.rs says what it writes and patches its settings.
#
#   as --32 -o writer.o writer.s && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o writer writer.o

.set    BUFFER, 0x8000              # a write's bytes
.set    SECTORS_MAX, 8              # of a write
.set    DISKS, 0x81                 # the BIOS's number of the first of the two; 0x80 is the one with this

        .code16
        .globl  _start
_start: ljmp    $0, $begin
begin:  xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $_start, %sp
        cld
        sti

# Where: the step's number, scattered over the span. How much: one to eight sectors, by the number again.
next:   movl    step, %eax
        movl    $0x9e3779b1, %ecx
        mull    %ecx
        xorl    %edx, %edx
        divl    span
        movl    %edx, sector
        movw    step, %ax
        andw    $(SECTORS_MAX - 1), %ax
        incw    %ax
        movw    %ax, count

        movl    step, %ebp
        movb    $DISKS, %dl
        call    write
        movl    %ebp, done
        movb    $(DISKS + 1), %dl
        call    write
        movl    %ebp, done + 4

        incl    step
        decw    left
        jnz     next
        movw    pace, %ax
        movw    %ax, left
        hlt                         # until the next tick of the clock
        jmp     next

# To disk %dl: words of the step's number, below the disk's.
write:  movzbl  %dl, %eax
        shll    $24, %eax
        orl     step, %eax
        movw    $BUFFER, %di
        movw    $(SECTORS_MAX * 512 / 4), %cx
        rep stosl
        movw    $packet, %si
        movw    $0x4300, %ax        # extended write, not verified
        int     $0x13
        jnc     1f
        incl    errors
1:      ret

packet: .byte   16, 0
count:  .word   0
        .word   BUFFER, 0
sector: .quad   0
left:   .word   1

        .org    480
step:   .long   1                   # the one that is written
done:   .long   0, 0                # the last one that each disk has for certain
errors: .long   0                   # writes that failed
span:   .long   1                   # sectors that a write may begin at
pace:   .word   1                   # steps between two ticks
        .org    510
        .byte   0x55, 0xaa
