package image

import "time"

// blockBytes is the block of the file systems that are made: the page of the
// guest's processor, which is all that every kernel with erofs can mount.
const blockBytes = 4096

// Limits of an image. What is beyond is refused.
const (
	// layersMax: builders themselves stop at 127.
	layersMax = 128
	// manifestBytesMax bounds a manifest and an index; registries take 4 MiB.
	manifestBytesMax = 4 << 20
	// configBytesMax bounds an image's configuration: 128 layers with a history of
	// some KiB each have less than 1 MiB.
	configBytesMax = 4 << 20
	// indexEntriesMax: a manifest's descriptor has some 250 bytes, so 4 MiB could
	// name 16,000 images; the largest in use name 30.
	indexEntriesMax = 1024
	// entriesMax of all layers together. One takes some 300 bytes of memory while
	// the disk is built, so 1,000,000 take 300 MiB; a large distribution has 300,000.
	entriesMax = 1_000_000
	// unpackedBytesMax of all layers together, holes of sparse files included. The
	// largest images in use (CUDA with models) have 40 GiB; at 1 GiB/s of a bomb's
	// zeros the refusal comes within three minutes.
	unpackedBytesMax = 160 << 30
	// downloadBytesMax of all layers together, compressed.
	downloadBytesMax = 64 << 30
	// nameBytesMax of a file name, as every file system of Linux has it.
	nameBytesMax = 255
	// pathBytesMax is the kernel's PATH_MAX: longer paths cannot be opened.
	pathBytesMax = 4096
	// linksMax: as many symbolic links are followed on a path as the kernel does.
	linksMax = 40
	// xattrsMax and xattrBytesMax of one file. The kernel takes lists and values of
	// 64 KiB; a record of tar holds 1 MiB.
	xattrsMax     = 256
	xattrBytesMax = 64 << 10
	// windowBytesMax of zstd: the largest that the program zstd makes without being
	// asked for more (--long=27).
	windowBytesMax = 128 << 20
)

// Limits of an image's configuration. All of it goes to the guest in one message of
// 1 MiB, and into the cluster's state.
const (
	wordsMax       = 1024     // arguments, variables, labels, ports, volumes: each list
	wordBytesMax   = 32 << 10 // one of them; the kernel takes 128 KiB
	configTextMax  = 256 << 10
	referenceMax   = 512 // as the API allows
	stopSignalsMax = 64  // the highest signal of Linux
)

// Limits of an archive.
const (
	// archiveEntriesMax: 128 layers of 64 images with their metadata.
	archiveEntriesMax = 16 << 10
	// archiveImagesMax: each becomes a disk.
	archiveImagesMax = 64
)

// Limits of a disk that is imported.
const (
	// diskBytesMax of its virtual size: tables of qcow2 for 1 TiB at 64 KiB clusters
	// have 128 MiB on disk and are read one cluster at a time.
	diskBytesMax = 1 << 40
	// partitionsMax: GPT's usual table has 128.
	partitionsMax = 256
)

// Limits of what is asked of registries and nodes.
const (
	// redirectsMax: a registry sends to its storage, which may send once more.
	redirectsMax = 5
	// attemptsMax of a download that breaks off, each going on where the last one
	// ended; an attempt that brought something does not count.
	attemptsMax = 5
	// stallTimeout ends an attempt that brings nothing any more.
	stallTimeout = 30 * time.Second
	// downloadsMax at the same time for one image: more do not make a link faster.
	downloadsMax = 3
	// dialTimeout bounds a connection, tlsTimeout its handshake, headerTimeout the
	// wait for an answer.
	dialTimeout   = 10 * time.Second
	tlsTimeout    = 10 * time.Second
	headerTimeout = 60 * time.Second
	// blobsKept is how long what was downloaded stays for a retry.
	blobsKept = 24 * time.Hour
	// progressBytes lie between two reports: 1,000 of them for 1 GiB.
	progressBytes = 1 << 20
)
