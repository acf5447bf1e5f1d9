package volume

func victim() bool { return false }
