package volumes

import "github.com/tombolo-vdc/tombolo/handlers/region/chunks"

// Extent says whether the byte at off is in a range that takes no room and reads as zeros, and the range's length in
// bytes, 1 to n. It reads no data. Errors: range-invalid, volume-closed.
func (v *Volume) Extent(off, n int64) (hole bool, length int64, err error) {
	done, err := v.begin(off, n, false)
	if err != nil {
		return false, 0, err
	}
	defer done()
	if n == 0 {
		return false, 0, errorf(RangeInvalid, "no bytes at %d", off)
	}
	hole, end := extent(v.layers, v.base, off, off+n)
	for end < off+n {
		more, next := extent(v.layers, v.base, end, off+n)
		if more != hole {
			break
		}
		end = next
	}
	return hole, end - off, nil
}

// extent gives one run of the topmost layer that tells of off.
func extent(layers []*layer, base *chunks.Disk, off, end int64) (hole bool, to int64) {
	if len(layers) == 0 {
		if base == nil || off >= base.Size() {
			return true, end
		}
		block := off / chunks.BlockSize
		return base.Index().At(block).IsZero(), min(end, (block+1)*chunks.BlockSize, base.Size())
	}
	s, last := layers[0].states.run(off/BlockSize, blocksOf(end))
	end = min(end, last*BlockSize)
	if s == inherited {
		return extent(layers[1:], base, off, end)
	}
	return s == zeroed, end
}
