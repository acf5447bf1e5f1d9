package qemu

import (
	"bytes"
	"errors"
	"io"

	"github.com/blixard/blixard/internal/problem"
)

// Places of the marks of kernels.
const (
	// elfMark is at the beginning of a vmlinux.
	elfMark = "\x7fELF"
	// bzImageMark is in the header of a bzImage (Documentation/arch/x86/boot.rst).
	bzImageMark   = "HdrS"
	bzImageOffset = 0x202
)

// checkKernel refuses a file that is neither a vmlinux nor a bzImage: QEMU itself
// would boot anything, and nothing would come of it.
func checkKernel(path string) error {
	f, err := openRegular("kernel", path, true)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, bzImageOffset+len(bzImageMark))
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return problem.New(problem.Internal, "driver.file", "kernel").WithCause(err)
	}
	if isKernel(head[:n]) {
		return nil
	}
	return problem.New(problem.Invalid, "driver.not_a_kernel", "%s is not a Linux kernel", path).
		WithHint("give a vmlinux (ELF) or a bzImage")
}

func isKernel(head []byte) bool {
	return bytes.HasPrefix(head, []byte(elfMark)) ||
		len(head) >= bzImageOffset+len(bzImageMark) && string(head[bzImageOffset:bzImageOffset+len(bzImageMark)]) == bzImageMark
}
