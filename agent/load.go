package agent

import (
	"bytes"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
)

const (
	// pressureFile and averageFile are where Linux tells the load.
	pressureFile = "/proc/pressure/cpu"
	averageFile  = "/proc/loadavg"
	// loadFileMax bytes of them are read; both have less than 200.
	loadFileMax = 1024
	// percentMax is all of a time.
	percentMax = 100
)

// HostLoad gives the load of the host in percent: how much of the last ten seconds
// something that could run had to wait for a processor. A kernel without pressure stall
// information tells only how many processes run or wait, as an average of the last minute:
// then it is their share of the processors. Nil means that the host does not tell.
//
// It is about processors alone, since only these are given out several times over: memory is
// reserved as it is.
func HostLoad() *uint32 {
	percent, known := pressure(beginning(pressureFile))
	if !known {
		percent, known = average(beginning(averageFile), runtime.NumCPU())
	}
	if !known {
		return nil
	}
	return &percent
}

// beginning of a file; nothing of one that can't be read.
func beginning(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, loadFileMax))
	if err != nil {
		return nil
	}
	return b
}

// pressure reads the line "some avg10=1.23 avg60=... avg300=... total=...".
func pressure(file []byte) (percent uint32, known bool) {
	for line := range bytes.Lines(file) {
		words := bytes.Fields(line)
		if len(words) < 2 || string(words[0]) != "some" {
			continue
		}
		figure, found := bytes.CutPrefix(words[1], []byte("avg10="))
		if !found {
			return 0, false
		}
		v, err := strconv.ParseFloat(string(figure), 64)
		if err != nil || !(v >= 0 && v <= percentMax) {
			return 0, false
		}
		return uint32(math.Round(v)), true
	}
	return 0, false
}

// average reads the first figure of "0.52 0.58 0.59 3/602 12345", by the processors there
// are. More processes than processors are all of them.
func average(file []byte, processors int) (percent uint32, known bool) {
	words := bytes.Fields(file)
	if len(words) == 0 || processors <= 0 {
		return 0, false
	}
	v, err := strconv.ParseFloat(string(words[0]), 64)
	if err != nil || !(v >= 0) || math.IsInf(v, 1) {
		return 0, false
	}
	return uint32(math.Round(min(percentMax*v/float64(processors), percentMax))), true
}
