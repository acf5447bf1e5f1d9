# A guest of the conformance suite, as a PVH kernel: it says "tiny guest is up" on
# COM1, echoes what comes in there, sleeps in between, and on 'r' ends the machine
# by a triple fault.
#
#   as --32 -o tiny.o tiny.s && ld -m elf_i386 -N -Ttext=0x100000 -e start -s -o tiny.elf tiny.o

	.set	COM1, 0x3f8
	.set	IDT, 0x200000
	.set	STACK, 0x300000
	.set	VECTOR, 0x24		# IRQ 4 behind the remapped controller

	# PVH: the loader jumps here in 32-bit protected mode, paging off.
	.section .note.pvh, "a", @note
	.long	4, 4, 18		# XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.long	start

	.text
	.code32
	.globl	start
start:
	cli
	cld
	movl	$STACK, %esp
	lgdt	gdtr
	ljmp	$8, $1f
1:	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	# One gate: the serial port's interrupt.
	movl	$IDT, %edi
	xorl	%eax, %eax
	movl	$512, %ecx
	rep stosl
	movl	$onserial, %eax
	movw	%ax, IDT + 8 * VECTOR
	movw	$8, IDT + 8 * VECTOR + 2
	movw	$0x8e00, IDT + 8 * VECTOR + 4
	shrl	$16, %eax
	movw	%ax, IDT + 8 * VECTOR + 6
	lidt	idtr
	# The interrupt controllers: vectors from 0x20 and 0x28, only IRQ 4 open.
	movb	$0x11, %al
	outb	%al, $0x20
	outb	%al, $0xa0
	movb	$0x20, %al
	outb	%al, $0x21
	movb	$0x28, %al
	outb	%al, $0xa1
	movb	$4, %al
	outb	%al, $0x21
	movb	$2, %al
	outb	%al, $0xa1
	movb	$1, %al
	outb	%al, $0x21
	outb	%al, $0xa1
	movb	$0xef, %al
	outb	%al, $0x21
	movb	$0xff, %al
	outb	%al, $0xa1
	# The local APIC takes interrupts of those controllers.
	movl	$0x1ff, 0xfee000f0
	movl	$0x700, 0xfee00350
	# The serial port: 8 bits, its line to the controller on, interrupt on input.
	movw	$(COM1 + 3), %dx
	movb	$3, %al
	outb	%al, %dx
	movw	$(COM1 + 4), %dx
	movb	$0x0b, %al
	outb	%al, %dx
	movw	$(COM1 + 1), %dx
	movb	$1, %al
	outb	%al, %dx
	movl	$hello, %esi
2:	lodsb
	testb	%al, %al
	jz	3f
	call	put
	jmp	2b
3:	sti
	hlt
	jmp	3b

# put writes the byte in al.
put:
	movb	%al, %bl
	movw	$(COM1 + 5), %dx
1:	inb	%dx, %al
	testb	$0x20, %al
	jz	1b
	movw	$COM1, %dx
	movb	%bl, %al
	outb	%al, %dx
	ret

onserial:
	pushal
1:	movw	$(COM1 + 5), %dx
	inb	%dx, %al
	testb	$1, %al
	jz	2f
	movw	$COM1, %dx
	inb	%dx, %al
	cmpb	$'r', %al
	je	end
	call	put
	jmp	1b
2:	movb	$0x20, %al
	outb	%al, $0x20
	popal
	iret

end:
	lidt	none
	int3

hello:
	.asciz	"tiny guest is up\n"

	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff
	.quad	0x00cf93000000ffff
gdtr:
	.word	23
	.long	gdt
idtr:
	.word	0x7ff
	.long	IDT
none:
	.word	0
	.long	0
