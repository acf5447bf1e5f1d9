# The tiny guest of the accelerator probe. The driver puts it at the beginning of
# 64 KiB of firmware, whose reset vector jumps to it.
#
# Real-mode code alone proves little: some hosts have a /dev/kvm whose emulator
# runs that and then hangs or fails on a kernel. So this does what a 64-bit kernel
# does first: CPUID, model-specific registers, paging, long mode, an exception
# with its return, ring 3 and back by an interrupt, and reading the time stamp
# counter. Then it writes OK to port 0xf4, where isa-debug-exit ends QEMU with
# exit code OK<<1|1. If anything fails, it writes BAD or triple-faults, which ends
# QEMU under -no-reboot with another code.
#
#   as --64 -o guest.o guest.s && ld -Ttext=0 --oformat binary -o guest.bin guest.o
#
# The address of a byte is its offset here plus 0xf0000.

	.set	BASE, 0xf0000
	.set	PORT, 0xf4
	.set	OK, 0x2a
	.set	BAD, 0x15
	.set	EFER, 0xc0000080
	.set	CODE64, 0x08
	.set	DATA, 0x10
	.set	CODE32, 0x18
	.set	USERDATA, 0x23
	.set	USERCODE, 0x2b
	.set	TSS, 0x30
	.set	STACK, 0x7000
	.set	USERSTACK, 0x6000
	.set	IDT, 0x8000
	.set	TASK, 0x9000
	.set	GDT, 0xa000
	.set	PML4, 0x1000
	.set	PDPT, 0x2000
	.set	PD, 0x3000

	.code16
	.globl	_start
_start:
real:
	cli
	cld
	lgdtl	%cs:(gdtreal)
	movl	%cr0, %eax
	orl	$1, %eax
	movl	%eax, %cr0
	ljmpl	$CODE32, $(BASE + protected)

	.code32
protected:
	movw	$DATA, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$STACK, %esp
	# Is there long mode at all?
	movl	$0x80000001, %eax
	cpuid
	testl	$(1 << 29), %edx
	jz	bad32
	# Identity-map the first 2 MiB, open to ring 3.
	movl	$PML4, %edi
	xorl	%eax, %eax
	movl	$0x3000 / 4, %ecx
	rep stosl
	movl	$(PDPT | 7), PML4
	movl	$(PD | 7), PDPT
	movl	$0x87, PD
	movl	$PML4, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$0x20, %eax
	movl	%eax, %cr4
	movl	$EFER, %ecx
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000000, %eax
	movl	%eax, %cr0
	rdmsr
	testl	$0x400, %eax
	jz	bad32
	# A GDT in RAM, since the task register marks its entry busy.
	movl	$(BASE + gdt), %esi
	movl	$GDT, %edi
	movl	$(gdtend - gdt) / 4, %ecx
	rep movsl
	lgdt	BASE + gdtram
	ljmp	$CODE64, $(BASE + long)
bad32:
	movb	$BAD, %al
	outb	%al, $PORT
	hlt

	.code64
long:
	movl	$STACK, %esp
	# Gates: 6 is the invalid opcode, 0x80 the call from ring 3.
	movl	$IDT, %edi
	xorl	%eax, %eax
	movl	$0x1000 / 4, %ecx
	rep stosl
	movl	$(BASE + onud), %eax
	movl	$(IDT + 16 * 6), %edi
	movl	$0x8e00, %edx
	call	gate
	movl	$(BASE + oncall), %eax
	movl	$(IDT + 16 * 0x80), %edi
	movl	$0xee00, %edx
	call	gate
	lidt	BASE + idtr
	# The task state holds the stack of ring 0.
	movl	$TASK, %edi
	xorl	%eax, %eax
	movl	$104 / 4, %ecx
	rep stosl
	movl	$STACK, TASK + 4
	movw	$TSS, %ax
	ltr	%ax
	# An exception, and its return.
	xorl	%ebx, %ebx
	ud2
	cmpl	$0x1234, %ebx
	jne	bad
	# The time stamp counter goes forward.
	rdtsc
	movl	%eax, %esi
	movl	%edx, %edi
	movl	$1000, %ecx
1:	loop	1b
	rdtsc
	subl	%esi, %eax
	sbbl	%edi, %edx
	jc	bad
	orl	%eax, %edx
	jz	bad
	# Ring 3 and back.
	pushq	$USERDATA
	pushq	$USERSTACK
	pushq	$2
	pushq	$USERCODE
	pushq	$(BASE + user)
	iretq
user:
	movl	$0x5678, %ebx
	int	$0x80
	hlt

onud:
	movl	$0x1234, %ebx
	addq	$2, (%rsp)
	iretq

oncall:
	cmpl	$0x5678, %ebx
	jne	bad
	cmpq	$USERCODE, 8(%rsp)
	jne	bad
	movb	$OK, %al
	outb	%al, $PORT
	hlt
bad:
	movb	$BAD, %al
	outb	%al, $PORT
	hlt

# gate writes an interrupt gate at rdi for the code at eax with the attributes dx.
gate:
	movw	%ax, (%rdi)
	movw	$CODE64, 2(%rdi)
	movw	%dx, 4(%rdi)
	shrl	$16, %eax
	movw	%ax, 6(%rdi)
	ret

	.balign	8
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	# CODE64
	.quad	0x00cf93000000ffff	# DATA
	.quad	0x00cf9b000000ffff	# CODE32
	.quad	0x00cff3000000ffff	# USERDATA
	.quad	0x00affb000000ffff	# USERCODE
	.quad	0x0000890090000067	# TSS, at TASK
	.quad	0
gdtend:
gdtreal:
	.word	gdtend - gdt - 1
	.long	BASE + gdt
gdtram:
	.word	gdtend - gdt - 1
	.quad	GDT
idtr:
	.word	0xfff
	.quad	IDT
