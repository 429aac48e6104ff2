                       ; Each line stands behind its address and its bytes, which are what bench.cartridge reads. To change it,
                       ; edit the source and run: PYTHONPATH=.:tests python -m support.assembler bench/cartridge.asm

                       ; Catch: a ball falls, a paddle moved with left and right catches it.
                       ; A caught ball scores; a missed one costs a life; without lives the screen darkens until start is pressed.

                       SCORE    = 0xC0A0  ; caught balls, stops at 255
                       MISSES   = 0xC0A1  ; missed balls, stops at LIVES_AT_START
                       LIVES    = 0xC0A2  ; 0: the game is over
                       BALL_X   = 0xC0A3  ; left edge in pixels, 12 to 139
                       BALL_Y   = 0xC0A4  ; upper edge in pixels, 8 to FLOOR
                       PADDLE_X = 0xC0A5  ; left edge in pixels, 0 to PADDLE_LAST
                       RANDOM   = 0xC0A6  ; two bytes, a shift register that takes one step a frame

                       LIVES_AT_START = 3
                       PADDLE_SPEED   = 3    ; pixels a frame
                       PADDLE_LAST    = 135  ; the paddle is 24 pixels wide, the screen 160
                       BALL_SPEED     = 2    ; pixels a frame
                       BALL_TOP       = 8    ; under the row of lives and score
                       FLOOR          = 128  ; here the ball's lower edge meets the paddle

                       OAM  = 0xFE00  ; sprites: y + 16, x + 8, tile, attributes
                       MAP  = 0x9800  ; background, 32 tiles a row
                       JOYP = 0x00    ; registers, from 0xFF00
                       IF   = 0x0F
                       LCDC = 0x40
                       LY   = 0x44
                       BGP  = 0x47
                       OBP0 = 0x48
                       IE   = 0xFF

                           org 0x0040  ; vertical blank: it only has to wake the halted processor
0040 D9                    reti

                           org 0x0100
0100 00                    nop
0101 C35001                jp start

                           org 0x0134
0134 4341544348            db "CATCH"

                           org 0x0150
                       start:
0150 F3                    di
0151 31FEFF                ld sp, 0xFFFE
                       wait_for_blank:
0154 F044                  ldh a, (LY)
0156 FE90                  cp 144
0158 38FA                  jr c, wait_for_blank
015A AF                    xor a
015B E040                  ldh (LCDC), a
015D 210080                ld hl, 0x8000
                       clear_video:
0160 AF                    xor a
0161 22                    ld (hl+), a
0162 7C                    ld a, h
0163 FEA0                  cp 0xA0
0165 20F9                  jr nz, clear_video
0167 2100FE                ld hl, OAM
                       clear_sprites:
016A AF                    xor a
016B 22                    ld (hl+), a
016C 7D                    ld a, l
016D FEA0                  cp 0xA0
016F 20F9                  jr nz, clear_sprites
0171 210080                ld hl, 0x8000
0174 11C302                ld de, tiles
0177 0640                  ld b, tiles_end - tiles
                       copy_tiles:
0179 1A                    ld a, (de)
017A 13                    inc de
017B 22                    ld (hl+), a
017C 05                    dec b
017D 20FA                  jr nz, copy_tiles
017F 21209A                ld hl, MAP + 544  ; the floor, row 17
0182 0614                  ld b, 20
0184 3E03                  ld a, 3
                       draw_floor:
0186 22                    ld (hl+), a
0187 05                    dec b
0188 20FC                  jr nz, draw_floor
018A AF                    xor a
018B EAA0C0                ld (SCORE), a
018E EAA1C0                ld (MISSES), a
0191 3E03                  ld a, LIVES_AT_START
0193 EAA2C0                ld (LIVES), a
0196 3E44                  ld a, 68
0198 EAA5C0                ld (PADDLE_X), a
019B 3EAC                  ld a, 0xAC
019D EAA6C0                ld (RANDOM), a
01A0 3EE1                  ld a, 0xE1
01A2 EAA7C0                ld (RANDOM + 1), a
01A5 CDFD01                call new_ball
01A8 3EE4                  ld a, 0xE4  ; colours 0 to 3, from light to dark
01AA E047                  ldh (BGP), a
01AC E048                  ldh (OBP0), a
01AE AF                    xor a
01AF E00F                  ldh (IF), a
01B1 3E01                  ld a, 1
01B3 E0FF                  ldh (IE), a
01B5 3E93                  ld a, 0x93  ; screen, tiles at 0x8000, sprites and background on
01B7 E040                  ldh (LCDC), a
01B9 FB                    ei

                       frame:
01BA 76                    halt
01BB 00                    nop
01BC CDE201                call next_random
01BF FAA2C0                ld a, (LIVES)
01C2 FE00                  cp 0
01C4 280B                  jr z, game_over
01C6 CD0D02                call move_paddle
01C9 CD3A02                call move_ball
01CC CD7002                call draw  ; still before the first line of the next frame
01CF 18E9                  jr frame

                       game_over:
01D1 3E1B                  ld a, 0x1B  ; dark for light
01D3 E047                  ldh (BGP), a
01D5 3E10                  ld a, 0x10
01D7 E000                  ldh (JOYP), a
01D9 F000                  ldh a, (JOYP)
01DB E608                  and 8  ; start, 0 while held
01DD 20DB                  jr nz, frame
01DF C35001                jp start

                       next_random:  ; one step of a Galois register of 16 bits: 65,535 steps until it repeats
01E2 FAA6C0                ld a, (RANDOM)
01E5 6F                    ld l, a
01E6 FAA7C0                ld a, (RANDOM + 1)
01E9 67                    ld h, a
01EA CB3C                  srl h
01EC CB1D                  rr l
01EE 3004                  jr nc, store_random
01F0 7C                    ld a, h
01F1 EEB4                  xor 0xB4
01F3 67                    ld h, a
                       store_random:
01F4 7D                    ld a, l
01F5 EAA6C0                ld (RANDOM), a
01F8 7C                    ld a, h
01F9 EAA7C0                ld (RANDOM + 1), a
01FC C9                    ret

                       new_ball:
01FD 3E08                  ld a, BALL_TOP
01FF EAA4C0                ld (BALL_Y), a
0202 FAA6C0                ld a, (RANDOM)
0205 E67F                  and 127
0207 C60C                  add a, 12
0209 EAA3C0                ld (BALL_X), a
020C C9                    ret

                       move_paddle:
020D 3E20                  ld a, 0x20
020F E000                  ldh (JOYP), a
0211 F000                  ldh a, (JOYP)
0213 F000                  ldh a, (JOYP)  ; the lines of a real pad need a moment
0215 47                    ld b, a
0216 FAA5C0                ld a, (PADDLE_X)
0219 4F                    ld c, a
021A 78                    ld a, b
021B E602                  and 2  ; left, 0 while held
021D 2007                  jr nz, not_left
021F 79                    ld a, c
0220 D603                  sub PADDLE_SPEED
0222 3001                  jr nc, set_left
0224 AF                    xor a
                       set_left:
0225 4F                    ld c, a
                       not_left:
0226 78                    ld a, b
0227 E601                  and 1  ; right
0229 200A                  jr nz, not_right
022B 79                    ld a, c
022C C603                  add a, PADDLE_SPEED
022E FE87                  cp PADDLE_LAST
0230 3802                  jr c, set_right
0232 3E87                  ld a, PADDLE_LAST
                       set_right:
0234 4F                    ld c, a
                       not_right:
0235 79                    ld a, c
0236 EAA5C0                ld (PADDLE_X), a
0239 C9                    ret

                       move_ball:
023A FAA4C0                ld a, (BALL_Y)
023D C602                  add a, BALL_SPEED
023F EAA4C0                ld (BALL_Y), a
0242 FE80                  cp FLOOR
0244 D8                    ret c
0245 FAA5C0                ld a, (PADDLE_X)
0248 47                    ld b, a
0249 FAA3C0                ld a, (BALL_X)
024C C607                  add a, 7
024E 90                    sub b
024F FE1F                  cp 31  ; 8 + 24 pixels overlap in 31 places
0251 300D                  jr nc, missed
0253 FAA0C0                ld a, (SCORE)
0256 FEFF                  cp 255
0258 28A3                  jr z, new_ball
025A 3C                    inc a
025B EAA0C0                ld (SCORE), a
025E 189D                  jr new_ball
                       missed:
0260 FAA1C0                ld a, (MISSES)
0263 3C                    inc a
0264 EAA1C0                ld (MISSES), a
0267 FAA2C0                ld a, (LIVES)
026A 3D                    dec a
026B EAA2C0                ld (LIVES), a
026E 188D                  jr new_ball

                       draw:
0270 2100FE                ld hl, OAM
0273 FAA4C0                ld a, (BALL_Y)
0276 C610                  add a, 16
0278 22                    ld (hl+), a
0279 FAA3C0                ld a, (BALL_X)
027C C608                  add a, 8
027E 22                    ld (hl+), a
027F 3E01                  ld a, 1
0281 22                    ld (hl+), a
0282 AF                    xor a
0283 22                    ld (hl+), a
0284 FAA5C0                ld a, (PADDLE_X)
0287 C608                  add a, 8
0289 4F                    ld c, a
028A 0603                  ld b, 3
                       draw_paddle:
028C 3E98                  ld a, 152
028E 22                    ld (hl+), a
028F 79                    ld a, c
0290 22                    ld (hl+), a
0291 C608                  add a, 8
0293 4F                    ld c, a
0294 3E02                  ld a, 2
0296 22                    ld (hl+), a
0297 AF                    xor a
0298 22                    ld (hl+), a
0299 05                    dec b
029A 20F0                  jr nz, draw_paddle
029C 210098                ld hl, MAP
029F FAA2C0                ld a, (LIVES)
02A2 4F                    ld c, a
02A3 0603                  ld b, LIVES_AT_START
02A5 1601                  ld d, 1
02A7 CDB702                call draw_row
02AA 210498                ld hl, MAP + 4
02AD FAA0C0                ld a, (SCORE)
02B0 E60F                  and 15
02B2 4F                    ld c, a
02B3 0610                  ld b, 16
02B5 1602                  ld d, 2

                       draw_row:  ; b places from hl: tile d in the first c, tile 0 in the others
02B7 79                    ld a, c
02B8 FE00                  cp 0
02BA 2802                  jr z, draw_nothing
02BC 0D                    dec c
02BD 7A                    ld a, d
                       draw_nothing:
02BE 22                    ld (hl+), a
02BF 05                    dec b
02C0 20F5                  jr nz, draw_row
02C2 C9                    ret

                       tiles:  ; sixteen bytes each: for each row of pixels the low bits of the colours, then the high bits
02C3 0000000000000000      db 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00
02CB 0000000000000000      db 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00
02D3 3C3C7E42FF81FF81      db 0x3C, 0x3C, 0x7E, 0x42, 0xFF, 0x81, 0xFF, 0x81
02DB FF81FF817E423C3C      db 0xFF, 0x81, 0xFF, 0x81, 0x7E, 0x42, 0x3C, 0x3C
02E3 FFFFFFFF00FF00FF      db 0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0xFF, 0x00, 0xFF
02EB 00FFFFFFFFFF0000      db 0x00, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x00
02F3 FF005500AA005500      db 0xFF, 0x00, 0x55, 0x00, 0xAA, 0x00, 0x55, 0x00
02FB AA005500AA00FF00      db 0xAA, 0x00, 0x55, 0x00, 0xAA, 0x00, 0xFF, 0x00
                       tiles_end:
