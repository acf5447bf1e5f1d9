// Package bundle is the directory of files that a node boots microVMs from: kernels with their
// initramfs and command line, and built-in images. Build makes one, Open reads one.
//
// It is not the place where a kernel is compiled or taken apart (guest/kernel), holds no disk of a
// VM (disk) and fetches no OCI image. It builds no QEMU arguments either: it only says, per kernel,
// which command line and which machine that kernel was measured to boot fastest with.
//
// A bundle is not trusted: its manifest is parsed with limits, every file name in it is confined to
// the directory, and each file's digest is checked before its path is given out for the first time
// (and again whenever size, modification time or inode differ from what was checked).
//
// Layout:
//
//	manifest.json          what follows, with sizes and digests
//	kernels/NAME/kernel    vmlinux (PVH) or bzImage
//	kernels/NAME/initramfs blixard-guest as /init, and modules where the kernel needs them
//	images/NAME.ext4       read-only root file system
package bundle
